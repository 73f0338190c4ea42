import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mixllm.format.rounded import Rounded
from mixllm.rotation import rotate
from mixllm.rounding.hessian import rotate_both
from mixllm.rounding.observed import energies, observed, watch


class Exact(Rounded):
    """A layer whose values are any floats: its scales."""

    def dequantize(self):
        return self.scales


def stand_in(values):
    nothing = torch.zeros(len(values), 0)
    return Exact(bits=nothing, codes=nothing, zeros=nothing, scales=values)


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
    stored, h = (rotate(changed), rotate_both(flat.T @ flat)) if rotated else (changed, flat.T @ flat)
    found = observed(energies(linear.weight, stand_in(stored), h, rotated=rotated), inputs["a"])
    y = flat @ linear.weight.detach().T
    expected = float((flat @ changed.T - y).norm() / y.norm())
    assert found.error == pytest.approx(expected, rel=2e-3)
    assert found.peak == pytest.approx(float(x.abs().max()))
    assert found.mean == pytest.approx(float(x.abs().mean()), rel=1e-5)


def test_silent_inputs_have_no_error():
    linear, x = nn.Linear(5, 3, bias=False), torch.zeros(1, 4, 5)
    with watch({"a": linear}) as inputs:
        linear(x)
    found = observed(
        energies(linear.weight, stand_in(torch.ones(3, 5)), torch.zeros(5, 5), rotated=False), inputs["a"]
    )
    assert (found.error, found.peak, found.mean) == (0, 0, 0)
