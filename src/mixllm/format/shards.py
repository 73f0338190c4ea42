"""A checkpoint's safetensors files: written whole, and what they say they hold before any of it is read."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mixllm.errors import MixllmError
from mixllm.files import write_atomically
from mixllm.index import INDEX, SINGLE, read_index

DTYPES = {
    "U8": torch.uint8,
    "I8": torch.int8,
    "I32": torch.int32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
}
FLOATS = (torch.float16, torch.bfloat16, torch.float32)


@dataclass(frozen=True)
class Header:
    """A tensor as its file's header describes it; dtype in safetensors' spelling."""

    file: Path
    dtype: str
    shape: tuple[int, ...]

    @property
    def torch_dtype(self) -> torch.dtype | None:
        """None for a dtype that no tensor of a quantized layer has."""
        return DTYPES.get(self.dtype)

    @property
    def bytes(self) -> int:
        """Of the tensor's data. Raises KeyError for a dtype that no tensor of a quantized layer has."""
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


def save(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file, whole or not at all; MixllmError when no space is left."""
    about = {"format": "pt", **(metadata or {})}
    write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata=about))


def find_shards(path: Path) -> list[Path]:
    """The safetensors files of a checkpoint directory; an index must agree with them in every name.

    Raises MixllmError where there are none, one is missing or damaged, or the index says otherwise.
    """
    single, index = path / SINGLE, path / INDEX
    if single.exists() and index.exists():
        raise MixllmError(f"{path}: holds both {SINGLE} and {INDEX}; remove the one that is not the model's")
    if single.exists():
        return [single]
    if not index.exists():
        raise MixllmError(f"{path}: holds neither {SINGLE} nor {INDEX}; the checkpoint is not complete")
    promised = read_index(index)
    files = sorted(set(promised.values()))
    held = {name: header.file for name, header in read_headers(files).items()}
    if wrong := sorted(held.items() ^ promised.items()):
        name, file = wrong[0]
        raise MixllmError(f"{index}: tensor {name}: the index and {file} don't agree on where it is")
    return files


def read_headers(files: Iterable[Path]) -> dict[str, Header]:
    """The headers of all tensors; the files' lengths are checked, their tensors not read.

    Raises MixllmError for a file that is missing or damaged, and for a tensor that two files hold.
    """
    headers: dict[str, Header] = {}
    for file in files:
        for name, header in _read_header(file).items():
            if name in headers:
                raise MixllmError(f"{file}: tensor {name}: {headers[name].file} holds it too")
            headers[name] = header
    return headers


def _read_header(file: Path) -> dict[str, Header]:
    if not file.is_file():
        raise MixllmError(f"{file}: missing; the checkpoint is not complete")
    if not os.access(file, os.R_OK):
        raise MixllmError(f"{file}: not yours to read")  # safetensors says that it is not there
    try:
        with safe_open(file, framework="pt") as tensors:
            if (tensors.metadata() or {}).get("format") != "pt":
                raise MixllmError(f"{file}: its metadata doesn't say format pt")
            parts = {name: tensors.get_slice(name) for name in tensors.offset_keys()}
            return {
                name: Header(file, part.get_dtype(), tuple(part.get_shape())) for name, part in parts.items()
            }
    except (SafetensorError, OSError) as error:
        raise MixllmError(f"{file}: not a whole safetensors file ({error}); copy it again") from None
