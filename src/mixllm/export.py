"""A checkpoint's weights as ordinary floats, which any tool loads: to check them, or to convert further.

Weights only: int8 activations are what a layer does at run time, and no plain format can say so.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from safetensors import safe_open
from torch import Tensor

from mixllm.config import Format
from mixllm.errors import MixllmError
from mixllm.files import read_json, write_directory, write_json
from mixllm.format.checkpoint import copy_companions
from mixllm.format.config import QuantizedModule, read_config
from mixllm.format.mixed import MixedWeight
from mixllm.format.pack import shapes, unpack
from mixllm.format.shards import Header, find_shards, save
from mixllm.format.split import SHARD_BYTES
from mixllm.format.validate import GUARD, validate_tensors
from mixllm.index import INDEX
from mixllm.rotation import rotate


def export_dense(checkpoint: Path, out: Path, shard_bytes: int = SHARD_BYTES) -> None:
    """Write the model of `checkpoint` to the new directory `out`, each quantized weight [N, K] in bfloat16.

    All else is copied as it is. One shard is in memory at a time. `out` appears when it is whole. Raises
    MixllmError for a broken checkpoint, and where `out` holds anything already.
    """
    format, modules = read_config(checkpoint)
    headers = validate_tensors(find_shards(checkpoint), format, modules)
    if out.exists() and any(out.iterdir()):
        raise MixllmError(f"{out}: is not empty; give a directory that is")
    with write_directory(out) as part:
        _write(checkpoint, part, headers, format, modules, shard_bytes)


def _write(
    checkpoint: Path,
    out: Path,
    headers: dict[str, Header],
    format: Format,
    modules: dict[str, QuantizedModule],
    shard_bytes: int,
) -> None:
    split = split_state_dict_into_shards_factory(
        {name: _bytes(name, headers, modules) for name in _names(headers, modules)},
        get_storage_size=lambda size: size,
        get_storage_id=lambda size: None,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=shard_bytes,
    )
    for shard, names in split.filename_to_tensors.items():
        save(out / shard, dict(_tensors(names, headers, format, modules)))
    if split.is_sharded:
        write_json(out / INDEX, {"metadata": split.metadata, "weight_map": split.tensor_to_filename})
    copy_companions(checkpoint, out)
    config = read_json(checkpoint / "config.json")
    del config["quantization_config"]
    write_json(out / "config.json", config)


def dense_weight(weight: MixedWeight, format: Format) -> Tensor:
    """float32 [N, K]: what the stored numbers stand for, in the basis of the float model."""
    w = unpack(weight, format).dequantize()
    # x' W'^T = x (W' H)^T, as the rotation H is symmetric and its own inverse.
    return rotate(w) if format.rotation == "hadamard" else w


def _names(headers: dict[str, Header], modules: dict[str, QuantizedModule]) -> Iterator[str]:
    for name in headers:
        module, _, key = name.rpartition(".")
        if module not in modules or key in (GUARD, "bias"):
            yield name


def _bytes(name: str, headers: dict[str, Header], modules: dict[str, QuantizedModule]) -> int:
    header = headers[name]
    if module := modules.get(name.removesuffix(f".{GUARD}")):
        return 2 * module.in_features * module.out_features
    return math.prod(header.shape) * (header.torch_dtype.itemsize if header.torch_dtype else 8)


def _tensors(
    names: list[str], headers: dict[str, Header], format: Format, modules: dict[str, QuantizedModule]
) -> Iterator[tuple[str, Tensor]]:
    for name in names:
        module_name = name.removesuffix(f".{GUARD}")
        module = modules.get(module_name)
        if module is None:
            yield name, _read(headers, name)
            continue
        keys = shapes(format, module.rows, module.in_features)
        stored = {key: _read(headers, f"{module_name}.{key}") for key in keys}
        yield name, dense_weight(MixedWeight(module.in_features, **stored), format).to(torch.bfloat16)


def _read(headers: dict[str, Header], name: str) -> Tensor:
    with safe_open(headers[name].file, framework="pt") as tensors:
        tensor: Tensor = tensors.get_tensor(name)
    return tensor
