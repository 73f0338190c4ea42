"""Products with weights that are not quantized, on every instruction set."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mixllm.kernels import cpu
from mixllm.kernels.cpu.dense import dense
from mixllm.kernels.cpu.ops import TYPES
from tests import shapes
from tests.kernels.cpu.guard import guarded

isas = pytest.mark.parametrize("isa", range(len(cpu.instruction_sets())), ids=cpu.instruction_sets())


@isas
@pytest.mark.parametrize("dtype", TYPES, ids=str)
@given(st.integers(1, 150), shapes.in_features, st.integers(1, 9), shapes.seeds)
def test_agrees_with_float64(isa: int, dtype: torch.dtype, n: int, k: int, t: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, w = (torch.randn(rows, k, generator=generator).to(dtype) for rows in (t, n))
    expected = x.double() @ w.double().T
    # Sums in float32, then one rounding to the type.
    bound = 1e-6 * (x.double().abs() @ w.double().abs().T) + torch.finfo(dtype).eps * expected.abs()
    assert bool(((dense(x, w, isa).double() - expected).abs() <= bound + torch.finfo(dtype).tiny).all())


@isas
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_all_instruction_sets_give_the_same_bits(isa: int, dtype: torch.dtype) -> None:
    x, w = torch.randn(7, 333).to(dtype), torch.randn(201, 333).to(dtype)
    assert torch.equal(dense(x, w, isa), dense(x, w, len(cpu.instruction_sets()) - 1))


@isas
@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("k", [29, 64, 100])
def test_nothing_is_read_past_a_tensors_end(isa: int, dtype: torch.dtype, k: int) -> None:
    x, w = torch.randn(3, k).to(dtype), torch.randn(37, k).to(dtype)
    with guarded([x, w]) as (guarded_x, guarded_w):
        assert torch.equal(dense(guarded_x, guarded_w, isa), dense(x, w, isa))
