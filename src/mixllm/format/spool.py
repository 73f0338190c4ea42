"""Quantized layers that wait on disk for the shards they belong in: one file for each block of the model.

A file is there whole or not at all, so the files that are there are the blocks that are done.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from mixllm.format.mixed import MixedWeight
from mixllm.format.shards import save
from mixllm.format.validate import GUARD

_NOTES = "mixllm_notes"


class Spool:
    """The layers of the first blocks of a model; its length is the number of blocks that are done."""

    def __init__(self, directory: Path) -> None:
        """directory: made if it is not there; what a Spool wrote in it before is there again."""
        self.directory = directory
        directory.mkdir(exist_ok=True)

    def append(self, layers: Mapping[str, MixedWeight], notes: Mapping[str, Any]) -> Path:
        """The next block's layers, on any device, and JSON values to be had back by name from notes().

        Returns the file that they are in. Raises MixllmError when no space is left.
        """
        tensors = {
            f"{name}.{key}": tensor.cpu().contiguous()
            for name, weight in layers.items()
            for key, tensor in weight.tensors().items()
        }
        guards = {f"{name}.{GUARD}": torch.empty(0, dtype=torch.uint8) for name in layers}
        file = self._path(len(self))
        save(file, {**tensors, **guards}, {_NOTES: json.dumps(dict(notes))})
        return file

    def __len__(self) -> int:
        done = 0
        while self._path(done).exists():
            done += 1
        return done

    def block(self, i: int) -> dict[str, MixedWeight]:
        """The layers of block i by name, on the CPU."""
        layers: dict[str, dict[str, Any]] = {}
        with safe_open(self._path(i), framework="pt") as file:
            for full in file.offset_keys():
                name, _, key = full.rpartition(".")
                if key != GUARD:
                    layers.setdefault(name, {})[key] = file.get_tensor(full)
        return {name: MixedWeight(tensors["codes8"].shape[1], **tensors) for name, tensors in layers.items()}

    def files(self) -> list[Path]:
        """Every file that is left, also once the shards have taken some."""
        return sorted(self.directory.glob("*.safetensors"))

    def notes(self) -> dict[str, Any]:
        """All blocks' notes in one."""
        found: dict[str, Any] = {}
        for file in self.files():
            with safe_open(file, framework="pt") as tensors:
                found.update(json.loads(tensors.metadata()[_NOTES]))
        return found

    def remove(self) -> None:
        shutil.rmtree(self.directory, ignore_errors=True)

    def _path(self, block: int) -> Path:
        return self.directory / f"{block:05}.safetensors"
