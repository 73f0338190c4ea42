"""GPTQ (arXiv 2210.17323): round column by column, each error made good by the columns still to come.

Rows are independent given H, so 4- and 8-bit rows share one pass. A group's grid is made when the
pass reaches it, from the weights as corrected so far.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mixllm.config import ClipBy
from mixllm.rounding.clip import SHRINKS, best_grid, best_grid_for_gptq
from mixllm.rounding.columns import round_columns
from mixllm.rounding.grid import Grid, Grids
from mixllm.rounding.hessian import Factor


def gptq(
    weight: Tensor, grids: Grids, factor: Factor, *, clip: bool, clip_by: ClipBy, fixed: Grid | None
) -> tuple[Tensor, list[Grid]]:
    """Round weight [N, K] -> codes float32 [N, K] and the grid of each group, both in the layer's own order.

    fixed: the grid of every group, for weights with one scale a row. clip, clip_by: see QuantConfig.
    """
    order = torch.cat(factor.groups)
    # Column by column in memory: a group's columns lie together, for every step that takes them.
    w, diagonal = weight.T[order], factor.diagonal[order]
    exact = clip and clip_by == "gptq"
    if w.is_cuda and fixed is None and not exact:
        from mixllm.rounding.gptq_triton import launch

        codes, found = launch(w, grids, factor, diagonal, SHRINKS if clip else SHRINKS[:1])
    else:
        codes, found = _walk(w.T, grids, factor, diagonal, clip, exact, fixed)
    del w
    back = torch.empty_like(order)
    back[order] = torch.arange(len(order), device=order.device)
    grid_of = dict(zip(factor.numbers, found, strict=True))
    return codes[back].T.contiguous(), [grid_of[g] for g in sorted(grid_of)]


def _walk(
    w: Tensor, grids: Grids, factor: Factor, diagonal: Tensor, clip: bool, exact: bool, fixed: Grid | None
) -> tuple[Tensor, list[Grid]]:
    """Codes float32 [K, N] and the grid of each group as it is processed, of w [N, K], which is spoiled.

    w and diagonal [K]: in the order of processing. exact: a group's clipping by GPTQ's own error.
    """
    codes: list[Tensor] = []
    found: list[Grid] = []
    start = 0
    for columns in factor.groups:
        stop = start + len(columns)
        block = w[:, start:stop]
        upper = factor.upper[start:stop, start:stop]
        if fixed is not None:
            grid = fixed
        elif exact:
            grid = best_grid_for_gptq(grids, block, upper)
        else:
            grid = best_grid(grids, block, diagonal[start:stop], clip)
        rounded, errors = round_columns(block, grid, upper)
        w[:, stop:].addmm_(errors, factor.upper[start:stop, stop:], alpha=-1)
        codes.append(rounded.T)
        found.append(grid)
        start = stop
    return torch.cat(codes), found
