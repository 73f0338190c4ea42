"""The inner loop of GPTQ: round the columns of one group in turn, each error fed to those after it."""

from __future__ import annotations

import torch
from torch import Tensor

from mixllm.rounding.grid import Grid


def round_columns(block: Tensor, grid: Grid, upper: Tensor) -> tuple[Tensor, Tensor]:
    """Round block [N, L] in column order -> (codes, errors), float32 [N, L].

    upper: float32 [L, L], the group's part of the upper Cholesky factor of the inverse Hessian.
    errors[:, j] = (w_j - value of its code) / upper[j, j]: what later groups make good.
    On a GPU one kernel does what would be a dozen launches a column.
    """
    if block.is_cuda:
        from mixllm.rounding.columns_triton import launch

        return launch(block, grid, upper)
    # Column-major, so that each column of the loop is contiguous.
    w = block.T.contiguous().T
    codes, errors = torch.empty_like(w), torch.empty_like(w)
    for j in range(w.shape[1]):
        column = w[:, j : j + 1]
        code = grid.snap(column)
        error = (column - grid.value(code)) / upper[j, j]
        codes[:, j : j + 1], errors[:, j : j + 1] = code, error
        w[:, j + 1 :].addmm_(error, upper[j : j + 1, j + 1 :], alpha=-1)
    return codes, errors
