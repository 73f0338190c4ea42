"""Tensors put aside on disk, block by block, and taken back once."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor


class Scratch:
    """Files in a directory that the caller makes and removes."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def put(self, i: int, tensors: dict[str, Tensor]) -> None:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, self._path(i))

    def take(self, i: int) -> dict[str, Tensor]:
        """The tensors put under i, on the CPU; they are gone from the disk afterwards."""
        tensors = load_file(self._path(i))
        self._path(i).unlink()
        return tensors

    def _path(self, i: int) -> Path:
        return self.directory / f"{i:05}.safetensors"
