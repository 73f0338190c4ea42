"""What rounding sees of each layer on the way: outliers of its inputs, and the error of its outputs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mixllm.rotation import rotate


@dataclass(frozen=True)
class Observed:
    """One linear layer on the calibration text.

    error: ||X (Wq - W)'|| / ||X W'||, the relative output error that rounding its weight makes.
    peak, mean: of |x|, over all tokens and inputs; what int8 activations must span, and what is typical.
    """

    error: float
    peak: float
    mean: float


@dataclass
class Inputs:
    """Running figures of a layer's inputs, on their device: float32 scalars."""

    peak: Tensor
    total: Tensor
    count: int = 0

    def add(self, x: Tensor) -> None:
        size = x.detach().abs()
        self.peak = torch.maximum(self.peak, size.max().float())
        self.total = self.total + size.sum(dtype=torch.float32)
        self.count += size.numel()


@contextmanager
def watch(linears: dict[str, nn.Linear]) -> Iterator[dict[str, Inputs]]:
    """Follow what the linears are fed inside the context."""
    found: dict[str, Inputs] = {}

    def hook(name: str) -> Any:
        def add(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0]
            nothing = torch.zeros((), device=x.device)
            found.setdefault(name, Inputs(nothing, nothing)).add(x)

        return add

    handles = [linear.register_forward_pre_hook(hook(name)) for name, linear in linears.items()]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def observed(weight: Tensor, rounded: Tensor, hessian: Tensor, inputs: Inputs, *, rotated: bool) -> Observed:
    """weight, rounded: [N, K], the latter in the rotated basis if `rotated`; hessian: X'X [K, K], X plain."""
    w = weight.detach().float()
    difference = (rotate(rounded) if rotated else rounded) - w
    size = _energy(w, hessian)
    return Observed(
        error=math.sqrt(_energy(difference, hessian) / size) if size > 0 else 0.0,
        peak=float(inputs.peak),
        mean=float(inputs.total) / inputs.count,
    )


def _energy(weight: Tensor, hessian: Tensor) -> float:
    """||X W'||^2, which rounding can bring a hair below 0."""
    return max(0.0, float(((weight @ hessian) * weight).sum(dtype=torch.float64)))
