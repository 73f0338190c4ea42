"""A model in a directory of safetensors, read tensor by tensor."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import PreTrainedConfig

from mixllm.errors import MixllmError, one_line
from mixllm.files import read_json
from mixllm.source import fp8
from mixllm.source.config import model_class, read_config
from mixllm.source.files import open_weights
from mixllm.source.fused import Part, expert_parts, published


class Source:
    """A causal language model on disk.

    path: directory with config.json and safetensors.
    config: the transformers config.
    names: every tensor of the safetensors files, in file order, as the causal model's modules name
        them: where the files were saved from the bare base model, its prefix ("model.") is put back.
        Block-scaled 8-bit floats (mixllm.source.fp8) are bfloat16 here, and their scales no tensors.
        Experts that the files hold fused (mixllm.source.fused) are here one by one, and named as published
        files name them; the fused tensors can be read too.

    Raises MixllmError where the directory is no causal language model in safetensors, a shard is
    missing or cut short, or the model is quantized already.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = read_config(path)
        self._files = open_weights(path)
        self._stored = _stored_names(self._files, self.config)
        self._checked: set[str] = set()
        self.fp8_block = fp8.block_size(read_json(path / "config.json").get("quantization_config"))
        self._scales = {name for name in self._stored if self.fp8_block and name.endswith(fp8.SCALE)}
        model_type = self.config.get_text_config().model_type
        if any(name.endswith(".mlp.experts.gate_up_proj") for name in self._stored):
            self._stored = {published(name, model_type): stored for name, stored in self._stored.items()}
        self._fused = expert_parts(self._stored, lambda name: self._header(name)[1], model_type)
        self._parts = {name: part for parts in self._fused.values() for name, part in parts.items()}
        whole = (name for name in self._stored if name not in self._scales)
        self.names = [part for name in whole for part in self._fused.get(name, (name,))]

    def __contains__(self, name: str) -> bool:
        return name in self._parts or (name in self._stored and name not in self._scales)

    def names_but(self, taken: Collection[str]) -> list[str]:
        """`names` without those taken; fused experts are named as the files do where none of them is."""
        kept = [name for name, parts in self._fused.items() if not any(part in taken for part in parts)]
        parts = {part: name for name in kept for part in self._fused[name]}
        return list(dict.fromkeys(parts.get(name, name) for name in self.names if name not in taken))

    def header(self, name: str) -> tuple[str, tuple[int, ...]]:
        """The safetensors dtype ("BF16", "F32" ..) and the shape, without reading the tensor."""
        part = self._parts.get(name)
        if part is None:
            return self._header(name)
        dtype, (_, _, columns) = self._header(part.whole)
        return dtype, (part.last - part.first, columns)

    def bytes(self, name: str) -> int:
        """The size of the tensor's data."""
        dtype, shape = self.header(name)
        # Every safetensors dtype but BOOL carries its bits: F32, BF16, I64, F8_E4M3.
        bits = re.search(r"\d+", dtype)
        return math.prod(shape) * (int(bits.group()) if bits else 8) // 8

    def tensor(self, name: str, bring: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """The tensor in its header's dtype, on the CPU, mapped from the file: to be read, never written.

        bring: copies it to where it is wanted, before all of it is looked at.
        Raises MixllmError when it is missing, cannot be read, or holds a NaN or an infinity.
        """
        tensor = self._read(name)
        if self.fp8_block and name + fp8.SCALE in self._scales:
            where = f"{self.path}: tensor {name}"
            tensor = fp8.dequantize(tensor, self._read(name + fp8.SCALE), self.fp8_block, where)
        tensor = tensor if bring is None else bring(tensor)
        if name not in self._checked:
            if not _finite(tensor):
                raise MixllmError(
                    f"{self.path}: tensor {name} holds NaN or infinite values; download the file again"
                )
            self._checked.add(name)
        return tensor

    def _header(self, name: str) -> tuple[str, tuple[int, ...]]:
        stored = self._stored_name(name)
        entry = self._files[stored].get_slice(stored)
        dtype = fp8.MADE if name + fp8.SCALE in self._scales else str(entry.get_dtype())
        return dtype, tuple(entry.get_shape())

    def _read(self, name: str) -> Tensor:
        part = self._parts.get(name)
        stored = self._stored_name(part.whole if part else name)
        try:
            tensor = _get(self._files[stored], stored, part)
        except (SafetensorError, OSError) as error:
            raise MixllmError(f"{self.path}: tensor {name} cannot be read ({one_line(error)})") from None
        return tensor

    def _stored_name(self, name: str) -> str:
        if name not in self._stored:
            raise MixllmError(
                f"{self.path}: tensor {name} is missing; the weights are not those of config.json"
            )
        return self._stored[name]


def _get(file: Any, stored: str, part: Part | None) -> Tensor:
    found: Tensor
    if part is None:
        found = file.get_tensor(stored)
    else:
        found = file.get_slice(stored)[part.expert, part.first : part.last]
    return found


def _stored_names(stored: Iterable[str], config: PreTrainedConfig) -> dict[str, str]:
    prefix = model_class(config).base_model_prefix
    if not prefix or any(name.startswith(prefix + ".") for name in stored):
        return {name: name for name in stored}
    return {f"{prefix}.{name}": name for name in stored}


def _finite(tensor: Tensor) -> bool:
    # 8-bit floats have no aminmax; whoever reads weights refuses them by their dtype.
    if not tensor.is_floating_point() or tensor.element_size() == 1 or not tensor.numel():
        return True
    # aminmax carries NaN through, in one pass with no temporary: 30 times quicker than isfinite().all().
    return all(bool(torch.isfinite(bound)) for bound in torch.aminmax(tensor))
