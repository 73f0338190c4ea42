"""Trying a model's first block, before any work: is it a decoder that can be walked block by block?"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixllm.blocks.block import first
from mixllm.blocks.shell import Shell
from mixllm.blocks.skeleton import linears
from mixllm.errors import MixllmError

LENGTH, COMMON = 8, 4


class _Sealed(nn.Linear):
    """A linear layer that computes and does not show its weight, as quantized ones don't."""

    @property
    def weight(self) -> Tensor:  # type: ignore[override]  # a parameter in nn.Linear
        raise _Shown(self)

    def forward(self, x: Tensor) -> Tensor:
        weight = self._parameters["weight"]
        assert weight is not None
        return F.linear(x, weight, self._parameters["bias"])


class _Shown(Exception):
    """A model's code asks for this layer's weight."""

    def __init__(self, layer: nn.Linear) -> None:
        self.layer = layer


@contextmanager
def _sealed(blocks: nn.Module, where: str) -> Iterator[None]:
    """Raise MixllmError where the model takes the weight of a block's linear layer instead of calling it."""
    layers = {layer: name for name, layer in linears(blocks, "blocks").items()}
    for layer in layers:
        layer.__class__ = _Sealed
    try:
        yield
    except _Shown as shown:
        name = re.sub(r"^blocks\.\d+\.", "", layers[shown.layer])
        raise MixllmError(
            f"{where}: its code takes the weight of {name} itself, and quantized layers have none; "
            "such a model can't be quantized"
        ) from None
    finally:
        for layer in layers:
            layer.__class__ = nn.Linear


@torch.no_grad()
def probe(shell: Shell, where: str) -> int:
    """Run block 0, whose weights are loaded, on two texts that begin alike; returns Shell.outputs.

    Raises MixllmError when early states depend on later tokens (an encoder), or a block's other
    arguments depend on the tokens (they are kept for a shape, so every text must share them), or its code
    takes a linear layer's weight itself, in the block (Mamba) or before any (RWKV, which rescales it).
    """
    with _sealed(shell.blocks, where):
        return _probe(shell, where)


def _probe(shell: Shell, where: str) -> int:
    position = torch.arange(LENGTH)[None]
    texts = [position, position + (position >= COMMON)]
    states = []
    for ids in texts:
        hidden, [(args, kwargs)] = shell.enter(ids, 1)
        output = shell.blocks[0](hidden, *args, **kwargs)
        states.append(first(output)[:, :COMMON].float())
        shell.outputs = len(output) if isinstance(output, tuple) else 0
    recorded = [shell.enter(ids, len(shell.blocks))[1] for ids in texts]
    if not _same(*recorded):
        raise MixllmError(f"{where}: its blocks take arguments that depend on the tokens; not supported")
    rounding = torch.finfo(hidden.dtype).eps ** 0.5 * float(states[0].abs().max())
    if float((states[0] - states[1]).abs().max()) > rounding:
        raise MixllmError(f"{where} attends to later tokens, as an encoder does; give a decoder")
    return shell.outputs


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return all(_same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return all(_same(x, y) for x, y in zip(a, b, strict=True))
    return True
