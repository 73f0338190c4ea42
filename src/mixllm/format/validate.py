"""Every lie that a checkpoint can tell, found before a model is built from it.

First what needs no tensor: config, file lengths, names, dtypes, shapes. Then the values, one layer at
a time. Each fault is a MixllmError of one line that names file, tensor and reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from mixllm.config import Format
from mixllm.errors import MixllmError
from mixllm.format.config import QuantizedModule, read_config
from mixllm.format.pack import shapes
from mixllm.format.shards import FLOATS, Header, find_shards, read_headers
from mixllm.format.values import check_values

# An empty tensor under a float weight's name: a loader that knows nothing of this format stops at the
# shape mismatch, where it would otherwise leave the layer at random values.
GUARD = "weight"


def validate(path: Path) -> None:
    """Check all of the checkpoint directory `path`; see docs/format.md for the rules. Raises MixllmError."""
    format, modules = read_config(path)
    validate_tensors(find_shards(path), format, modules)


def validate_headers(
    files: Iterable[Path], format: Format, modules: Mapping[str, QuantizedModule]
) -> dict[str, Header]:
    """Check what the files say of the quantized modules' tensors; returns the headers of all tensors.

    Raises MixllmError for one that is missing, too many, or of another dtype or shape.
    """
    headers = read_headers(files)
    for name, module in modules.items():
        _check_headers(headers, name, module, format)
    _check_strangers(headers, format, modules)
    return headers


def validate_tensors(
    files: Iterable[Path], format: Format, modules: Mapping[str, QuantizedModule]
) -> dict[str, Header]:
    """Check the tensors of the quantized modules, headers first; returns the headers of all tensors.

    Raises MixllmError as validate_headers() does, and for values that no encoder writes.
    """
    headers = validate_headers(files, format, modules)
    for name, module in modules.items():
        tensors = _read({key: headers[f"{name}.{key}"] for key in _expected(module, format)}, name)
        fault = check_values(tensors, format, module.in_features)
        if fault:
            tensor, reason = fault
            raise MixllmError(f"{headers[f'{name}.{tensor}'].file}: tensor {name}.{tensor}: {reason}")
    return headers


def _expected(module: QuantizedModule, format: Format) -> dict[str, tuple[tuple[int, ...], set[torch.dtype]]]:
    stored = shapes(format, module.rows, module.in_features)
    return {name: (shape, set(dtypes)) for name, (shape, dtypes) in stored.items()}


def _check_headers(headers: Mapping[str, Header], name: str, module: QuantizedModule, format: Format) -> None:
    expected = {**_expected(module, format), GUARD: ((0,), {torch.uint8})}
    if f"{name}.bias" in headers:
        expected["bias"] = (module.out_features,), set(FLOATS)
    for key, (shape, dtypes) in expected.items():
        tensor = f"{name}.{key}"
        header = headers.get(tensor)
        if header is None:
            raise MixllmError(f"tensor {tensor}: missing from the checkpoint's safetensors files")
        if header.torch_dtype not in dtypes:
            wanted = " or ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
            raise MixllmError(f"{header.file}: tensor {tensor}: its dtype is {header.dtype}, not {wanted}")
        if header.shape != shape:
            raise MixllmError(
                f"{header.file}: tensor {tensor}: its shape is {list(header.shape)}, not {list(shape)}"
            )


def _check_strangers(
    headers: Mapping[str, Header], format: Format, modules: Mapping[str, QuantizedModule]
) -> None:
    for tensor, header in headers.items():
        name, _, key = tensor.rpartition(".")
        if name in modules and key not in {*_expected(modules[name], format), GUARD, "bias"}:
            raise MixllmError(f"{header.file}: tensor {tensor}: a quantized layer of this format has none")


def _read(headers: Mapping[str, Header], name: str) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for file in {header.file for header in headers.values()}:
        with safe_open(file, framework="pt") as opened:
            for key in (key for key, header in headers.items() if header.file == file):
                tensors[key] = opened.get_tensor(f"{name}.{key}")
    return tensors
