"""Linear layers in fixed point: values, gradients and that nothing of it stays."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mixllm import fixed
from mixllm.fixed import fixed_products, product_of
from mixllm.kernels.cpu.fixed import FixedWeight
from tests import shapes


@pytest.fixture(autouse=True)
def _gains(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever this machine has."""
    monkeypatch.setattr(fixed, "quick", lambda: True)


@pytest.mark.parametrize("bias", [False, True])
def test_values_and_gradients_are_near_the_layers_own(bias: bool) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(77, 45, bias=bias).requires_grad_(False)
    x = shapes.inputs(2 * 13, 77, 1).view(2, 13, 77).requires_grad_()
    gradient = torch.randn(2, 13, 45)
    y = layer(x)
    (expected,) = torch.autograd.grad(y, x, gradient)
    with fixed_products({"layer": layer}):
        found = layer(x)
        (slope,) = torch.autograd.grad(found, x, gradient)
    assert not torch.equal(found, y)
    assert float((found - y).detach().norm()) < 1e-3 * float(y.detach().norm())
    assert float((slope - expected).norm()) < 1e-3 * float(expected.norm())
    assert torch.equal(layer(x), y)


def test_layers_are_themselves_again_after_an_error() -> None:
    layer = nn.Linear(5, 3)
    with pytest.raises(ZeroDivisionError), fixed_products({"layer": layer}):
        raise ZeroDivisionError
    assert "forward" not in vars(layer)


def test_only_float32_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = shapes.weight(7, 33, 1)
    half, x = weight.bfloat16(), shapes.inputs(5, 33, 2)
    assert isinstance(product_of(weight), FixedWeight)
    assert torch.equal(product_of(half)(x.bfloat16()), x.bfloat16() @ half.T)
    monkeypatch.setattr(fixed, "quick", lambda: False)
    assert torch.equal(product_of(weight)(x), x @ weight.T)
