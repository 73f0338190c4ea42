"""Products of float32 matrices on a GPU's tensor cores, which take 11 bits of a factor.

A float32 is the sum of its upper 11 bits and the rest, of which the tensor cores lose the last bit or two.
Three of the four products of such parts, summed in float32, make the product to about float32's own accuracy
(Ootomo and Yokota, arXiv 2203.03341): several times as fast as the units for float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

# Of a float32's 24 bits of significance, those that the tensor cores lose.
LOST = 13


def subtract_product(target: Tensor, a: Tensor, b: Tensor) -> None:
    """target [N, K] -= a [N, L] @ b [L, K], all float32; fast where L is small against N and K."""
    if target.is_cuda:
        a, b = in_parts(a, b)
    with on_tensor_cores():
        target.addmm_(a, b, alpha=-1)


def in_parts(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """a [N, L] and b [L, K] as [N, 3 L] and [3 L, K] whose product is a @ b, of numbers of 11 bits."""
    # A transposed factor stays one: it is copied along its memory.
    (a_high, a_low), (b_high, b_low) = _halves(a.T), _halves(b)
    return torch.cat([a_high, a_high, a_low]).T, torch.cat([b_high, b_low, b_high])


def _halves(x: Tensor) -> tuple[Tensor, Tensor]:
    high = (x.contiguous().view(torch.int32) & -(1 << LOST)).view(torch.float32)
    return high, x - high


@contextmanager
def on_tensor_cores() -> Iterator[None]:
    """Products of float32 matrices on a GPU take their factors at 11 bits."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
