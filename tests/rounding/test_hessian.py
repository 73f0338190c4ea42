"""Hessians are X'X of what each linear read, shared where the input is."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mixllm.rotation import rotate
from mixllm.rounding import hessian as module
from mixllm.rounding.hessian import collect, factor, rotate_both
from tests import shapes


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.o = nn.Linear(70, 12), nn.Linear(70, 6), nn.Linear(12, 70)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.o(self.q(x) * self.k(x).repeat(1, 1, 2))
        return y


@pytest.mark.parametrize("panel", [2048, 70, 32, 7])
def test_layers_with_one_input_share_one_hessian(panel: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(module.PANEL, "cpu", panel)
    block = Block()
    xs = [torch.randn(b, 5, 70) for b in (2, 1)]
    outs = [block.q(x) * block.k(x).repeat(1, 1, 2) for x in xs]
    with torch.no_grad(), collect({n: getattr(block, n) for n in "qko"}) as found:
        for x in xs:
            block(x)
    assert [shared.names for shared in found] == [["q", "k"], ["o"]]
    for shared, inputs in zip(found, (xs, outs), strict=True):
        flat = torch.cat([i.flatten(0, 1) for i in inputs]).detach()
        torch.testing.assert_close(shared.hessian, flat.T @ flat)


def test_rotating_a_hessian_is_the_hessian_of_rotated_inputs() -> None:
    x = shapes.inputs(50, 200, 0)
    torch.testing.assert_close(rotate_both(x.T @ x), rotate(x).T @ rotate(x), rtol=1e-3, atol=1e-1)


def test_a_factor_is_that_of_the_damped_inverse() -> None:
    """U'U = (H + added I)^-1 in the order of processing, also when the first damping is not enough."""
    x = shapes.inputs(400, 200, 1).double().float()
    for h, least in ((x.T @ x, 0.01), (-1e-2 * torch.eye(200) + torch.diag(torch.arange(200.0) % 2), 0.1)):
        found = factor(h, order=True, damping=0.01, where="layer")
        assert found.added >= least * float(h.diagonal().mean()) * 0.999
        order = torch.cat(found.groups)
        damped = h[order][:, order].double() + found.added * torch.eye(200)
        product = found.upper.double().T @ found.upper.double() @ damped
        torch.testing.assert_close(product, torch.eye(200).double(), rtol=0, atol=2e-2)
