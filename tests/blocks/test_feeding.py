"""What linears are fed when a block's output is not wanted."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mixllm.blocks import Block
from mixllm.blocks.feeding import feed
from mixllm.rounding.fed import fed
from tests.blocks.walking import opened, tokens
from tests.models import ARCHITECTURES, MIXTURES, write_tiny


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, *MIXTURES])
def test_every_linear_is_fed_what_it_is_in_the_whole_block(tmp_path: Path, architecture: str) -> None:
    write_tiny(tmp_path, architecture)
    decoder = opened(tmp_path)
    states = [decoder.embed(tokens(2, seed)) for seed in range(3)]
    products = 0

    def count(*_: object) -> None:
        nonlocal products
        products += 1

    with torch.no_grad(), decoder.block(1) as block:
        seen: list[tuple[str, Tensor, str | None]] = []
        with fed(block.linears, lambda *call: seen.append(call)):
            for hidden in states:
                block(hidden)
        whole = seen.copy()
        seen.clear()
        for linear in block.linears.values():
            linear.register_forward_hook(count)
        with fed(block.linears, lambda *call: seen.append(call)):
            feed(block, states)
    assert [(name, before) for name, _, before in seen] == [(name, before) for name, _, before in whole]
    assert all(torch.equal(x, y) for (_, x, _), (_, y, _) in zip(seen, whole, strict=True))
    if architecture in ARCHITECTURES:
        assert products == 3 * len(block.linears) - 2


class Sometimes(nn.Module):
    """Calls one layer more, or twice, where the first number says so."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        if x[0, 0, 0] > 0:
            y = self.second(y)
        if x[0, 0, 0] > 1:
            y = self.first(y)
        return y


@pytest.mark.parametrize("order", [[0, 1, 1], [2, 2, 1], [1, 0, 1], [1, 1, 0]])
def test_layers_that_are_not_called_once_each_are_never_cut_short(order: list[int]) -> None:
    module = Sometimes()
    linears = {"first": module.first, "second": module.second}
    seen: list[str] = []
    with fed(linears, lambda name, *_: seen.append(name)):
        block = Block(module, "block", 0, linears, {(1, 1): [((), {})]}, nullcontext())
        feed(block, [torch.full((1, 1, 3), float(value)) for value in order])
    expected = {0: ["first"], 1: ["first", "second"], 2: ["first", "second", "first"]}
    assert seen == [name for value in order for name in expected[value]]
