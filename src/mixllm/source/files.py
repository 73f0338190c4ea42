"""Finding and opening the safetensors files of a model's directory."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from mixllm.errors import MixllmError, one_line
from mixllm.index import INDEX, SINGLE, read_index


def is_gguf(model: str | Path) -> bool:
    """Whether a model's name is that of a GGUF file."""
    return Path(model).suffix.lower() == ".gguf"


def open_weights(path: Path) -> dict[str, Any]:
    """Every tensor's name in directory `path` -> the open safetensors file that holds it, in file order.

    Only headers are read. Raises MixllmError when there are no safetensors, a shard is missing or
    cut short, a tensor is not where the index says, or two shards hold one.
    """
    if (path / SINGLE).is_file():
        return _tensors([path / SINGLE])
    if (path / INDEX).is_file():
        index = read_index(path / INDEX)
        tensors = _tensors(list(dict.fromkeys(index.values())))
        for name, file in index.items():
            if name not in tensors:
                raise MixllmError(f"{file}: tensor {name} of {INDEX} is missing; download it again")
        return tensors
    for pattern in ("*.bin", "*.pth", "*.pt"):
        for other in path.glob(pattern):
            raise MixllmError(f"{path}: {other.name} but no {SINGLE}; save the model with save_pretrained")
    raise MixllmError(f"{path}: neither {SINGLE} nor {INDEX}; the model's weights are not there")


def _tensors(files: list[Path]) -> dict[str, Any]:
    tensors: dict[str, Any] = {}
    for file in files:
        if not file.is_file():
            raise MixllmError(f"{file}: shard is missing, {INDEX} names it; download it again")
        if not os.access(file, os.R_OK):
            raise MixllmError(f"{file}: not yours to read")  # safetensors says that it is not there
        try:
            opened: Any = safe_open(str(file), framework="pt", device="cpu")
        except (SafetensorError, OSError) as error:
            raise MixllmError(
                f"{file}: damaged or cut short ({one_line(error)}); download it again"
            ) from None
        for name in opened.keys():  # noqa: SIM118 (not a dict)
            if name in tensors:
                raise MixllmError(f"{file}: tensor {name}: another file holds it too; download them again")
            tensors[name] = opened
    return tensors
