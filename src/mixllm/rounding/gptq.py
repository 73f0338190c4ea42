"""GPTQ (arXiv 2210.17323): round column by column, each error made good by the columns still to come.

Rows are independent given H, so 4- and 8-bit rows share one pass. A group's grid is made when the
pass reaches it, from the weights as corrected so far.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mixllm.rounding.clip import best_grid
from mixllm.rounding.columns import round_columns
from mixllm.rounding.grid import Grid, Grids
from mixllm.rounding.hessian import Factor


def gptq(
    weight: Tensor, grids: Grids, factor: Factor, *, clip: bool, fixed: Grid | None
) -> tuple[Tensor, list[Grid]]:
    """Round weight [N, K] -> codes float32 [N, K] and the grid of each group, both in the layer's own order.

    fixed: the grid of every group, for weights with one scale a row.
    """
    w = weight[:, torch.cat(factor.groups)]
    codes = torch.empty_like(weight)
    found: dict[int, Grid] = {}
    start = 0
    for number, columns in zip(factor.numbers, factor.groups, strict=True):
        stop = start + len(columns)
        block = w[:, start:stop]
        grid = fixed or best_grid(grids, block, factor.diagonal[columns], clip)
        codes[:, columns], errors = round_columns(block, grid, factor.upper[start:stop, start:stop])
        w[:, stop:].addmm_(errors, factor.upper[start:stop, stop:], alpha=-1)
        found[number] = grid
        start = stop
    return codes, [found[g] for g in sorted(found)]
