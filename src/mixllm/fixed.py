"""The products of a float32 model on a CPU, in 16-bit fixed point where that is faster.

What binds the walks on a CPU is float32 products; mixllm.kernels.cpu.fixed says how far these are off.
They are for scores: what codes are made of stays float32, since a hair can move a code, and GPTQ then many
after it. On a GPU, and for other dtypes, everything stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor, nn

from mixllm.kernels.cpu.fixed import FixedWeight, quick

Product = Callable[[Tensor], Tensor]


def product_of(weight: Tensor) -> Product:
    """x [..., K] -> x W' [..., N] of a weight [N, K]; no gradient goes through it in fixed point."""
    return FixedWeight(weight) if _gains(weight) else lambda x: x @ weight.T


@contextmanager
def fixed_products(linears: Mapping[str, nn.Linear]) -> Iterator[None]:
    """Linear layers compute so inside the context, gradients by their inputs too (never by their weights,
    which no one may change meanwhile)."""
    changed = [linear for linear in linears.values() if _gains(linear.weight)]
    for linear in changed:
        linear.forward = _forward(linear)  # type: ignore[method-assign,assignment]  # for a while
    try:
        yield
    finally:
        for linear in changed:
            del linear.forward


def _gains(weight: Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and quick()


def _forward(linear: nn.Linear) -> Product:
    weight, bias = linear.weight, linear.bias
    forth, back = cache(lambda: FixedWeight(weight)), cache(lambda: FixedWeight(weight.T))

    def forward(x: Tensor) -> Tensor:
        y = cast(Tensor, _Linear.apply(x, forth, back))  # type: ignore[no-untyped-call]  # torch leaves it so
        return y if bias is None else y + bias

    return forward


class _Linear(torch.autograd.Function):
    """forth() of x, whose gradient is back() of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, forth: Callable[[], Product], back: Callable[[], Product]) -> Tensor:
        ctx.back = back
        return forth()(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return ctx.back()(gradients[0]), None, None
