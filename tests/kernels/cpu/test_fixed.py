"""Products in 16-bit fixed point on every instruction set, against float64 and their bound."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mixllm.kernels import cpu
from mixllm.kernels.cpu.fixed import FixedWeight
from tests import shapes
from tests.kernels.cpu.guard import guarded

isas = pytest.mark.parametrize("isa", range(len(cpu.instruction_sets())), ids=cpu.instruction_sets())
PORTABLE = len(cpu.instruction_sets()) - 1


def steps(x: Tensor) -> Tensor:
    """No less than the steps of the integers that rows [T, K] become: float64 [T, 1]."""
    x, k = x.double(), x.shape[1]
    return torch.maximum(x.norm(dim=1) / (46280 - k**0.5 / 2), x.abs().amax(dim=1) / 32766)[:, None]


def bound(x: Tensor, w: Tensor) -> Tensor:
    """That of mixllm.kernels.cpu.fixed."""
    s_x, s_w = steps(x), steps(w).T
    ones = s_x / 2 * w.double().abs().sum(dim=1) + x.double().abs().sum(dim=1, keepdim=True) * s_w / 2
    return ones + x.shape[1] / 4 * s_x * s_w


@isas
@given(
    st.integers(1, 70),
    shapes.in_features,
    st.integers(1, 30),
    shapes.seeds,
    st.sampled_from([1e-25, 1, 1e15]),
)
def test_is_within_its_bound(isa: int, n: int, k: int, t: int, seed: int, size: float) -> None:
    x, w = shapes.inputs(t, k, seed) * size, shapes.weight(n, k, seed)
    off = (FixedWeight(w, isa)(x).double() - x.double() @ w.double().T).abs()
    assert bool((off <= bound(x, w) * (1 + 1e-5) + 3e-7 * (x.double() @ w.double().T).abs()).all())


@isas
@pytest.mark.parametrize("k", [1, 600, 5000])
def test_the_largest_sums_do_not_overflow(isa: int, k: int) -> None:
    """Equal rows: the product is the lengths', as large as can be."""
    row = torch.full((1, k), 0.3)
    for x in (row, -row, row * torch.randn(k, generator=torch.Generator().manual_seed(k)).sign()):
        torch.testing.assert_close(FixedWeight(x, isa)(x), x @ x.T, rtol=1e-3, atol=0)


@isas
def test_typical_products_are_as_near_as_halves(isa: int) -> None:
    x, w = (torch.randn(n, 576, generator=torch.Generator().manual_seed(n)) for n in (50, 40))
    exact = x.double() @ w.double().T
    assert (FixedWeight(w, isa)(x) - exact).norm() < 3e-4 * exact.norm()


@isas
@given(st.integers(1, 3), st.integers(1, 40), st.integers(1, 29), st.integers(1, 3), shapes.seeds)
def test_sums_are_those_of_the_products(
    isa: int, b: int, period: int, length: int, widths: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    w, x, delta = (
        torch.randn(*shape, generator=generator)
        for shape in ((widths * period, 33), (b, length, 33), (b, length, period))
    )
    weight = FixedWeight(w, isa)
    product = (weight(x) * delta.repeat(1, 1, widths)).double()
    sums, squares = weight.sums(x, delta)
    torch.testing.assert_close(sums.double(), product.sum(dim=1), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(squares.double(), product.square().sum(dim=1), rtol=1e-5, atol=1e-5)


@isas
def test_all_instruction_sets_give_the_same_bits(isa: int) -> None:
    x, w, delta = shapes.inputs(401, 333, 1)[None], shapes.weight(77, 333, 2), torch.randn(1, 401, 11)
    one, other = FixedWeight(w, isa), FixedWeight(w, PORTABLE)
    assert torch.equal(one(x), other(x))
    for found, expected in zip(one.sums(x, delta), other.sums(x, delta), strict=True):
        assert torch.equal(found, expected)


@isas
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_gives_nan_and_leaves_other_rows_alone(isa: int, bad: float) -> None:
    x, w = shapes.inputs(15, 50, 1), shapes.weight(35, 50, 2)
    x[3], w[7] = 0, 1
    expected = FixedWeight(w, isa)(x)
    x[13, 49], w[34, 0] = bad, bad
    found = FixedWeight(w, isa)(x)
    assert bool(found[13].isnan().all()) and bool(found[:, 34].isnan().all())
    rest = [i for i in range(15) if i != 13]
    assert torch.equal(found[rest, :34], expected[rest, :34])
    assert not bool(found[3, :34].any())


@isas
@pytest.mark.parametrize("k", [1, 29, 64])
def test_nothing_is_read_past_a_tensors_end(isa: int, k: int) -> None:
    x, w, delta = torch.randn(1, 13, k), torch.randn(37, k), torch.randn(1, 13, 37)
    with guarded([x, w, delta]) as (guarded_x, guarded_w, guarded_delta):
        weight = FixedWeight(guarded_w, isa)
        assert torch.equal(weight(guarded_x), FixedWeight(w, isa)(x))
        weight.sums(guarded_x, guarded_delta)
