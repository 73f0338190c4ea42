"""The inner loop of GPTQ and of its refinement: round columns in turn, each error fed to those after it."""

from __future__ import annotations

import torch
from torch import Tensor

from mixllm.config import GROUP_SIZE
from mixllm.kernels.cpu import available
from mixllm.rounding import native
from mixllm.rounding.grid import Grid


def round_columns(
    block: Tensor, grid: Grid, upper: Tensor, origin: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Round block [N, L] in column order -> (codes, errors), float32 [N, L], column by column in memory.

    upper: float32 [L, L], upper triangular. After column j, errors[:, j] * upper[j, k] is taken from each
    column k > j, where errors[:, j] = (o_j - value of its code) / upper[j, j] and o_j is column j of
    origin [N, L] or, without one (GPTQ), of the block as corrected so far.
    One kernel does what would be a dozen launches or passes a column.
    """
    if block.is_cuda:
        from mixllm.rounding.columns_triton import launch

        return launch(block, grid, upper, origin)
    if available() and block.shape[1] <= GROUP_SIZE:
        return native.round_columns(block, grid, upper, origin)
    return one_by_one(block, grid, upper, origin)


def one_by_one(
    block: Tensor, grid: Grid, upper: Tensor, origin: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """round_columns in torch's own steps, where there is no kernel."""
    # A copy, column by column in memory.
    w = block.T.clone(memory_format=torch.contiguous_format).T
    codes, errors = torch.empty_like(w), torch.empty_like(w)
    for j in range(w.shape[1]):
        column = w[:, j : j + 1]
        code = grid.snap(column)
        start = column if origin is None else origin[:, j : j + 1]
        error = (start - grid.value(code)) / upper[j, j]
        codes[:, j : j + 1], errors[:, j : j + 1] = code, error
        w[:, j + 1 :].addmm_(error, upper[j : j + 1, j + 1 :], alpha=-1)
    return codes, errors
