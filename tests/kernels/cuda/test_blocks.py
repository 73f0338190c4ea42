"""blocks.py: every row is in one block, and whole pieces of eight neighbours come first."""

from __future__ import annotations

from itertools import pairwise

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mixllm.kernels.cuda.blocks import PIECE, ROWS, blocks
from mixllm.kernels.cuda.layout import TILE


def rows_of(n4: int, n8: int, seed: int) -> Tensor:
    """Channels in tiles, 8-bit ones first, as layout.py has them."""
    generator = torch.Generator().manual_seed(seed)
    eight = torch.randperm(n4 + n8, generator=generator) < n8
    widths = (eight.nonzero()[:, 0], (~eight).nonzero()[:, 0])
    return torch.cat([torch.nn.functional.pad(w, (0, -len(w) % TILE), value=-1) for w in widths]).int()


@given(n4=st.integers(0, 700), n8=st.integers(0, 700), seed=st.integers(0, 99))
def test_rows_and_their_order(n4: int, n8: int, seed: int) -> None:
    n8 = max(n8, 1 - n4)
    rows = rows_of(n4, n8, seed)
    tiles, tiles8 = rows.view(-1, TILE), -(-n8 // TILE)
    made = blocks(rows, tiles8).tolist()
    before, line = made[: len(tiles) + 1], torch.tensor(made[len(tiles) + 1 :]).view(-1, ROWS)
    assert len(line) == -(-len(tiles) // (ROWS // TILE))
    assert before[0] == 0
    assert before[-1] == tiles8

    # As csrc/hopper_schedule.cuh, Row16, reads it.
    eight = [after > now for now, after in pairwise(before)]
    order = [before[at] if is8 else tiles8 + at - before[at] for at, is8 in enumerate(eight)]
    assert sorted(order) == list(range(len(tiles)))
    middles = [tiles[at][tiles[at] >= 0].double().mean() for at in order]
    assert middles == sorted(middles), "tiles are in the order of their channels"

    every = torch.nn.functional.pad(tiles[order].flatten(), (0, line.numel() - rows.numel()), value=-1)
    for block, (its, channels) in enumerate(zip(line, every.view(-1, ROWS), strict=True)):
        row, channel = its % ROWS, its // ROWS
        assert sorted(row.tolist()) == list(range(ROWS)), block
        assert torch.equal(channel, channels[row].long())
        there = set(channels[channels >= 0].tolist())
        whole = sorted(c for c in there if all(c // PIECE * PIECE + i in there for i in range(PIECE)))
        singles = sorted(there - set(whole))
        assert channel.tolist() == whole + singles + [-1] * (ROWS - len(there))


def test_rows_that_are_neighbours_stay_as_they_are() -> None:
    rows = torch.arange(3 * ROWS, dtype=torch.int32)
    made = blocks(rows, 0)
    assert not made[: 3 * ROWS // TILE + 1].any()
    assert torch.equal(made[3 * ROWS // TILE + 1 :], rows * ROWS + rows % ROWS)
