"""The clip search: shrink a group's range where that lowers the layer's output error."""

from __future__ import annotations

import torch
from torch import Tensor

from mixllm.config import GROUP_SIZE
from mixllm.kernels.cpu import available
from mixllm.rounding import native
from mixllm.rounding.columns import round_columns
from mixllm.rounding.grid import Grid, Grids, pick, stack

SHRINKS = [1.0 - 0.02 * step for step in range(11)]


def best_grid(grids: Grids, w: Tensor, importance: Tensor, clip: bool) -> Grid:
    """The grid of weights w [N, L] with the least error weighted by importance [L].

    importance is the diagonal of the Hessian of the layer's inputs, in the order of w's columns.
    Without clip it is the grid of the whole range.
    """
    if w.shape[1] <= GROUP_SIZE and grids.kind != "row":
        # One kernel for what would be hundreds of launches or passes a group.
        shrinks = SHRINKS if clip else SHRINKS[:1]
        if w.is_cuda:
            from mixllm.rounding.clip_triton import launch

            return launch(grids, w, importance, shrinks)
        if available():
            return native.best_grid(grids, w, importance, shrinks)
    return search(grids, w, importance, clip)


def search(grids: Grids, w: Tensor, importance: Tensor, clip: bool) -> Grid:
    """best_grid in torch's own steps: for a row with one scale, and where there is no kernel."""
    best = grids.make(w)
    if not clip:
        return best
    least = _error(best, w, importance)
    for shrink in SHRINKS[1:]:
        grid = grids.make(w, shrink)
        error = _error(grid, w, importance)
        better = error < least
        best, least = grid.where(better, best), torch.where(better, error, least)
    return best


def best_grid_for_gptq(grids: Grids, w: Tensor, upper: Tensor) -> Grid:
    """The grid of weights w [N, L] with the least error as GPTQ itself counts it.

    Every grid is tried through the columns, upper [L, L] as in round_columns: the squares of the errors that
    are fed on add up to what the group adds to the layer's output error.
    """
    choices = [grids.make(w, shrink) for shrink in SHRINKS]
    _, errors = round_columns(w.repeat(len(choices), 1), stack(choices), upper)
    return pick(choices, errors.square().sum(dim=1).view(len(choices), -1).argmin(dim=0))


def _error(grid: Grid, w: Tensor, importance: Tensor) -> Tensor:
    return ((w - grid.value(grid.snap(w))).square() @ importance)[:, None]
