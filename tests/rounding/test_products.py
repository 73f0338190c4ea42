"""Factors in parts of 11 bits give the product to float32's accuracy where the other bits are lost."""

from __future__ import annotations

import torch
from torch import Tensor

from mixllm.rounding.products import KEPT, in_parts

N, L, K = 37, 92, 51


def random(rows: int, columns: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator) * 10 ** torch.randn(columns, generator=generator)


def at_eleven_bits(x: Tensor) -> Tensor:
    return (x.view(torch.int32) & KEPT).view(torch.float32)


def test_parts_are_as_good_as_the_whole() -> None:
    # Of a larger matrix, as the columns to come are.
    x, y = random(N, L + 9, 1)[:, 9:], random(L, K, 2)
    exact, size = x.double() @ y.double(), x.double().abs() @ y.double().abs()
    high = at_eleven_bits(y)
    right = torch.cat([high, high, y - high])
    three = at_eleven_bits(in_parts(x)).double() @ at_eleven_bits(right).double()
    assert float(((three - exact).abs() / size).max()) < 2**-18
    once = at_eleven_bits(x).double() @ high.double()
    assert float(((once - exact).abs() / size).max()) > 2**-14
