import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mixllm.rotation import rotate
from mixllm.rounding.observed import observed, watch

SIZES = st.tuples(st.integers(1, 9), st.integers(1, 30), st.sampled_from([1, 7, 64, 130, 200]))


@given(SIZES, st.booleans(), st.integers(0, 99))
def test_error_is_that_of_the_outputs(sizes, rotated, seed):
    n, tokens, k = sizes
    torch.manual_seed(seed)
    linear, x = nn.Linear(k, n, bias=False), torch.randn(2, tokens, k)
    changed = linear.weight.detach() + 0.1 * torch.randn(n, k)
    with watch({"a": linear}) as inputs:
        for part in x:
            linear(part[None])
    flat = x.reshape(-1, k)
    stored = rotate(changed) if rotated else changed
    found = observed(linear.weight, stored, flat.T @ flat, inputs["a"], rotated=rotated)
    y = flat @ linear.weight.detach().T
    expected = float((flat @ changed.T - y).norm() / y.norm())
    assert found.error == pytest.approx(expected, rel=2e-3)
    assert found.peak == pytest.approx(float(x.abs().max()))
    assert found.mean == pytest.approx(float(x.abs().mean()), rel=1e-5)


def test_silent_inputs_have_no_error():
    linear, x = nn.Linear(5, 3, bias=False), torch.zeros(1, 4, 5)
    with watch({"a": linear}) as inputs:
        linear(x)
    found = observed(linear.weight, linear.weight + 1, torch.zeros(5, 5), inputs["a"], rotated=False)
    assert (found.error, found.peak, found.mean) == (0, 0, 0)
