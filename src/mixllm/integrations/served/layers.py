"""Which of a checkpoint's modules make up a layer of an engine's model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from mixllm.errors import MixllmError
from mixllm.format.config import QuantizedModule


def parts_of(
    prefix: str, modules: Mapping[str, QuantizedModule], packed: Mapping[str, Sequence[str]], engine: str
) -> dict[str, QuantizedModule]:
    """The quantized modules that the engine joins into its linear layer `prefix`; none: it is float.

    packed: what a layer is made of, by the last part of its name, such as qkv_proj of q_proj, k_proj, v_proj.
    Raises MixllmError where only some of them are quantized.
    """
    parent, dot, name = prefix.rpartition(".")
    names = [prefix] if prefix in modules else [f"{parent}{dot}{part}" for part in packed.get(name, [name])]
    found = {name: modules[name] for name in names if name in modules}
    if found and (missing := [name for name in names if name not in found]):
        raise MixllmError(
            f"{prefix}: {engine} joins {', '.join(names)} into one layer, but {missing[0]} is not quantized"
        )
    return found


def refuse_other(
    layer: torch.nn.Module, prefix: str, modules: Mapping[str, QuantizedModule], engine: str
) -> None:
    """Raise MixllmError where quantized modules are part of a layer of another kind than linear."""
    for name in modules:
        if name == prefix or name.startswith(f"{prefix}."):
            raise MixllmError(f"{name}: is quantized, but {engine} makes it part of a {type(layer).__name__}")
