"""GPTQ (arXiv 2210.17323): round column by column, each error made good by the columns still to come.

Rows are independent given H, so 4- and 8-bit rows share one pass. A group's grid is made when the
pass reaches it, from the weights as corrected so far.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mixllm.rounding.clip import best_grid
from mixllm.rounding.grid import Grid, Grids
from mixllm.rounding.hessian import Factor


def gptq(
    weight: Tensor, grids: Grids, factor: Factor, *, clip: bool, fixed: Grid | None
) -> tuple[Tensor, list[Grid]]:
    """Round weight [N, K] -> codes float32 [N, K] and the grid of each group, both in the layer's column order.

    fixed: the grid of every group, for weights with one scale a row.
    """
    w = weight[:, torch.cat(factor.groups)]
    codes = torch.empty_like(weight)
    found: dict[int, Grid] = {}
    start = 0
    for columns in factor.groups:
        stop = start + len(columns)
        block, upper = w[:, start:stop].T.contiguous().T, factor.upper[start:stop]
        grid = fixed or best_grid(grids, block, factor.diagonal[columns], clip)
        # Column-major, so that each column of the inner loop is contiguous.
        errors = torch.empty_like(block)
        for j in range(stop - start):
            column = block[:, j : j + 1]
            code = grid.snap(column)
            codes[:, columns[j]] = code[:, 0]
            error = (column - grid.value(code)) / upper[j, start + j]
            errors[:, j : j + 1] = error
            block[:, j + 1 :].addmm_(error, upper[j : j + 1, start + j + 1 : stop], alpha=-1)
        w[:, stop:].addmm_(errors, upper[:, stop:], alpha=-1)
        found[int(columns.min()) // 128] = grid
        start = stop
    return codes, [found[g] for g in sorted(found)]
