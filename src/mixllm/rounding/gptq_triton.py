"""mixllm.rounding.gptq on a GPU: few launches a group into memory that is there, updates on tensor cores.

On an H200 it takes 16 % less time than the plain walk with the same two kernels for 28,672 rows of 4,096
inputs at two widths, 23 % less for 4,096 rows of 14,336. What is left is mostly the two kernels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mixllm.rounding import clip_triton, columns_triton
from mixllm.rounding.grid import Grid, Grids
from mixllm.rounding.hessian import Factor
from mixllm.rounding.products import in_parts, on_tensor_cores


def launch(
    w: Tensor, grids: Grids, factor: Factor, diagonal: Tensor, shrinks: Sequence[float]
) -> tuple[Tensor, list[Grid]]:
    """Codes float32 [K, N] and the grid of each group as it is processed, of w [K, N], which is spoiled.

    w and diagonal [K]: in the order of processing. The grid is the best of some shrinks.
    """
    n = w.shape[1]
    codes, fields = torch.empty_like(w), w.new_empty(len(factor.groups), 5, n, 1)
    grids_found, start = fields.unbind(0), 0
    # As it lies in memory, where LAPACK's way leaves it by columns.
    lower = factor.upper.T
    with on_tensor_cores():
        for columns, found in zip(factor.groups, grids_found, strict=True):
            stop = start + len(columns)
            block = w[start:stop]
            clip_triton.launch_into(found, grids, block.T, diagonal[start:stop], shrinks)
            errors = w.new_empty(3 * len(columns), n)
            columns_triton.launch_into(
                codes[start:stop],
                errors,
                block,
                block,
                found.unbind(0)[:4],
                lower[start:stop, start:stop].T.contiguous(),
            )
            if stop < len(w):
                w[stop:].addmm_(in_parts(lower[stop:, start:stop]), errors, alpha=-1)
            start = stop
    return codes, [Grid(*found.unbind(0)) for found in grids_found]
