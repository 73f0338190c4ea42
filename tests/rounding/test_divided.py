"""Who makes what of a block: every row once, nobody waited for long."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mixllm.ranks import Ranks
from mixllm.rounding.divided import FACTOR, _rows, _shares

Group = tuple[str, ...]


def llama(hidden: int, wide: int) -> tuple[list[Group], dict[str, nn.Linear]]:
    small = hidden // 4
    shapes = {"q": (hidden, hidden), "k": (small, hidden), "v": (small, hidden), "o": (hidden, hidden)}
    shapes |= {"gate": (wide, hidden), "up": (wide, hidden), "down": (hidden, wide)}
    with torch.device("meta"):
        linears = {name: nn.Linear(k, n, bias=False) for name, (n, k) in shapes.items()}
    return [("q", "k", "v"), ("o",), ("gate", "up"), ("down",)], linears


@given(st.sampled_from([(4096, 14336), (8192, 28672), (72, 136)]), st.integers(2, 8))
def test_the_rows_of_a_large_group_are_divided(shape: tuple[int, int], size: int) -> None:
    groups, linears = llama(*shape)
    cut, owners = _shares(groups, linears, Ranks(0, size))
    assert ("down",) in cut
    busy, total = [0.0] * size, 0.0
    for names, owner in zip(groups, owners, strict=True):
        rounding = sum(linears[name].out_features * linears[name].in_features ** 2 for name in names)
        factoring = FACTOR * linears[names[0]].in_features ** 3
        total += rounding + factoring
        busy[owner] += factoring if names in cut else rounding + factoring
        if names in cut:
            busy = [b + rounding / size for b in busy]
    # One factor is not divided.
    assert max(busy) <= 1.15 * total / size + FACTOR * shape[1] ** 3


def test_one_process_divides_nothing() -> None:
    groups, linears = llama(72, 136)
    assert _shares(groups, linears, Ranks()) == (set(), [0, 0, 0, 0])


def test_small_groups_stay_whole() -> None:
    with torch.device("meta"):
        linears = {f"expert{i}": nn.Linear(70, 30, bias=False) for i in range(9)}
    cut, owners = _shares([(name,) for name in linears], linears, Ranks(1, 2))
    assert not cut and sorted(owners.count(rank) for rank in range(2)) == [4, 5]


@given(st.integers(1, 40), st.integers(1, 7))
def test_every_row_is_made_once(n: int, size: int) -> None:
    linear = nn.Linear(3, n, bias=False)
    rows = [i for rank in range(size) for i in range(n)[_rows(linear, Ranks(rank, size))]]
    assert rows == list(range(n))
