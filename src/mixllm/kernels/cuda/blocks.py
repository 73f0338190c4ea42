"""Which rows csrc/hopper.cu multiplies together, and in which order it writes them; made at load.

A block of it has 128 rows, eight 16-row tiles of both widths. Rows that are neighbours in y should be in the
same block: so tiles are in the order of their channels. And of eight neighbours that begin at a multiple of
eight the block writes 16 bytes at once, if it has them all.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mixllm.kernels.cuda.layout import TILE

ROWS = 128
PIECE = 8


def blocks(rows: Tensor, tiles8: int) -> Tensor:
    """int32 [A + 1 + 128 B] for the channels `rows` of A tiles, the first `tiles8` of 8 bits, -1 where a row
    is missing; B = ceil(A / 8) blocks.

    First how many 8-bit tiles are before each tile in the order of channels, and how many in all. Then of
    each block 128 c + r for its rows r = 0 .. 127 and their channels c: those of whole pieces of eight
    neighbours, the others, each by their channels, and missing ones (c = -1).
    """
    tiles = rows.view(-1, TILE)
    there = tiles >= 0
    middle = (tiles * there).sum(1).double() / there.sum(1).clamp(min=1)
    # A width's tiles stay in their order.
    widths = [middle[:tiles8].cummax(0).values, middle[tiles8:].cummax(0).values]
    order = torch.cat(widths).argsort(stable=True)
    before = torch.nn.functional.pad((order < tiles8).cumsum(0), (1, 0))
    channels = torch.nn.functional.pad(tiles[order].flatten(), (0, -rows.numel() % ROWS), value=-1)
    return torch.cat((before.int(), lines(channels.view(-1, ROWS)).flatten().int()))


def lines(channels: Tensor) -> Tensor:
    """[B, 128] channels -> 128 c + r in the order above."""
    missing = torch.iinfo(channels.dtype).max
    ordered, row = channels.where(channels >= 0, missing).sort(dim=1, stable=True)
    first = ordered[:, : 1 - PIECE]
    starts = (first % PIECE == 0) & (ordered[:, PIECE - 1 :] - first == PIECE - 1)
    whole = torch.nn.functional.pad(starts, (PIECE - 1, PIECE - 1)).unfold(1, PIECE, 1).any(2)
    line = channels.gather(1, row) * ROWS + row
    return line.gather(1, (~whole).int().argsort(dim=1, stable=True))
