"""Factors in parts of 11 bits give the product to float32's accuracy, on tensor cores as without."""

from __future__ import annotations

import torch
from torch import Tensor

from mixllm.rounding.products import LOST, in_parts, subtract_product

N, L, K = 37, 92, 51


def random(rows: int, columns: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator) * 10 ** torch.randn(columns, generator=generator)


def at_eleven_bits(x: Tensor) -> Tensor:
    return (x.view(torch.int32) & -(1 << LOST)).view(torch.float32)


def test_parts_are_as_good_as_the_whole_where_bits_are_lost() -> None:
    a, b = random(N, L, 1), random(L, K, 2)
    exact = a.double() @ b.double()
    size = a.double().abs() @ b.double().abs()
    left, right = in_parts(a, b)
    three = at_eleven_bits(left.contiguous()).double() @ at_eleven_bits(right).double()
    assert float(((three - exact).abs() / size).max()) < 2**-18
    once = at_eleven_bits(a).double() @ at_eleven_bits(b).double()
    assert float(((once - exact).abs() / size).max()) > 2**-14


def test_a_product_is_taken_away_in_place() -> None:
    a, b, target = random(L, N, 3).T, random(L, K, 4), random(K, N, 5).T
    expected = target.double() - a.double() @ b.double()
    subtract_product(target, a, b)
    torch.testing.assert_close(target.double(), expected, rtol=1e-5, atol=1e-3)
