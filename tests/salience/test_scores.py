"""Scores of a block that uses a layer more than once, against gradients of its weight."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mixllm import fixed
from mixllm.blocks.attention import quick_attention
from mixllm.blocks.block import Block
from mixllm.config import QuantConfig
from mixllm.ranks import ALONE
from mixllm.salience.errors import Errors
from mixllm.salience.scores import Scores

WINDOWS, LENGTH, SIZE = 3, 7, 11


class Twice(nn.Module):
    """A residual block whose two steps share a layer; `alone` is used once."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Linear(SIZE, SIZE)
        self.alone = nn.Linear(SIZE, SIZE, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.alone(self.shared(self.shared(x).tanh()))


def scored(module: Twice, states: list[Tensor], gradients: list[Tensor], score: str) -> dict[str, Tensor]:
    """The scores after some batches, [widths, N] by layer."""
    linears = {name: layer for name, layer in module.named_children() if isinstance(layer, nn.Linear)}
    arguments = {(len(part), LENGTH): [((), {})] for part in states}
    attention = quick_attention(torch.device("cpu"), torch.float32)
    block = Block(module, "block", 0, linears, arguments, attention)
    scores = Scores(block, {name: Errors.made(errors(layer)) for name, layer in linears.items()}, LENGTH)
    for hidden, gradient in zip(states, gradients, strict=True):
        scores.add(hidden, gradient)
    config = QuantConfig.model_validate({"score": score})
    found = scores.result(config, WINDOWS, ALONE)
    return {name: torch.stack(list(module.loss.values())) for name, module in found.items()}


def errors(layer: nn.Linear) -> Tensor:
    return torch.stack([layer.weight.detach() * 0.1, layer.weight.detach().square() * -0.05])


def test_every_use_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fixed, "quick", lambda: False)
    torch.manual_seed(0)
    module = Twice()
    states, gradients = (torch.randn(WINDOWS, LENGTH, SIZE) for _ in range(2))
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    taylor, fisher = (
        scored(module, list(states.split(2)), list(gradients.split(2)), score)
        for score in ("taylor", "fisher")
    )
    for name, layer in (("shared", module.shared), ("alone", module.alone)):
        total = torch.zeros(2, SIZE)
        for x, gradient in zip(states, gradients, strict=True):
            layer.weight.requires_grad_(True)
            (by_weight,) = torch.autograd.grad(module(x), [layer.weight], gradient)
            layer.weight.requires_grad_(False)
            a = (by_weight * errors(layer)).sum(dim=2) / (LENGTH - 1)
            total += (a + a.square() / 2).abs() / WINDOWS
        torch.testing.assert_close(taylor[name], total, rtol=1e-4, atol=0)
    # Token-level Fisher of both uses, by inputs and outputs caught by hand.
    first = states.clone().requires_grad_()
    inner = module.shared(first)
    seen = inner.tanh()
    outer = module.shared(seen)
    deltas = torch.autograd.grad(first + module.alone(outer), [inner, outer], gradients)
    expected = torch.zeros(2, SIZE)
    for x, delta in zip((states, seen.detach()), deltas, strict=True):
        e = torch.einsum("blk,wnk->bwln", x, errors(module.shared))
        expected += (delta[:, None] * e).square().sum(dim=(0, 2)) / 2 / (WINDOWS * LENGTH)
    torch.testing.assert_close(fisher["shared"], expected, rtol=1e-4, atol=0)
