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

# Of a float32's bits, those that the tensor cores keep.
KEPT = -(1 << 13)


def in_parts(x: Tensor) -> Tensor:
    """x [N, L] as [N, 3 L]: its upper bits, the rest, its upper bits.

    Times [3 L, K] that holds the upper bits of y [L, K] twice and then the rest, it makes x @ y.
    """
    high = (x.view(torch.int32) & KEPT).view(torch.float32)
    return torch.cat([high, x - high, high], dim=1)


@contextmanager
def on_tensor_cores() -> Iterator[None]:
    """Products of float32 matrices on a GPU take their factors at 11 bits."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
