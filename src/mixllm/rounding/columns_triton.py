"""round_columns as one Triton kernel: rows are independent, so a program takes a few through all columns.

A program's rows stay in registers, ROWS x 128; step j picks column j out by a masked sum, rounds it, and
subtracts error * upper[j, :] from the columns to its right.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mixllm.config import GROUP_SIZE
from mixllm.rounding.grid import Grid

ROWS = 8


@triton.jit  # type: ignore[untyped-decorator]  # triton has no types
def _kernel(  # type: ignore[no-untyped-def]  # nor can it read Any in an annotation
    w_ptr,
    origin_ptr,
    codes_ptr,
    errors_ptr,
    grid_ptr,
    upper_ptr,
    n,
    FROM_ORIGIN: tl.constexpr,
    LENGTH: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    inside = (row < n)[:, None] & (column < LENGTH)[None, :]
    place = row[:, None] * LENGTH + column[None, :]
    w = tl.load(w_ptr + place, mask=inside, other=0.0)
    origin = tl.load(origin_ptr + place, mask=inside, other=0.0)
    scale = tl.load(grid_ptr + row, mask=row < n, other=1.0)
    zero = tl.load(grid_ptr + n + row, mask=row < n, other=0.0)
    low = tl.load(grid_ptr + 2 * n + row, mask=row < n, other=0.0)
    high = tl.load(grid_ptr + 3 * n + row, mask=row < n, other=0.0)
    codes = tl.zeros((ROWS, COLUMNS), tl.float32)
    errors = tl.zeros((ROWS, COLUMNS), tl.float32)
    for j in range(LENGTH):
        here = (column == j)[None, :]
        now = tl.sum(tl.where(here, w, 0.0), axis=1)
        # Adding and taking away 1.5 * 2^23 rounds half to even; what is too large for it is clamped anyway.
        nearest = (tl.div_rn(now, scale) + 12582912.0) - 12582912.0
        code = tl.minimum(tl.maximum(nearest + zero, low), high)
        upper = tl.load(upper_ptr + j * LENGTH + column, mask=column < LENGTH, other=0.0)
        diagonal = tl.sum(tl.where(column == j, upper, 0.0), axis=0)
        start = tl.sum(tl.where(here, origin, 0.0), axis=1) if FROM_ORIGIN else now
        error = (start - (code - zero) * scale) / diagonal
        codes = tl.where(here, code[:, None], codes)
        errors = tl.where(here, error[:, None], errors)
        w = tl.where((column > j)[None, :], w - error[:, None] * upper[None, :], w)
    tl.store(codes_ptr + place, codes, mask=inside)
    tl.store(errors_ptr + place, errors, mask=inside)


def launch(block: Tensor, grid: Grid, upper: Tensor, origin: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """See mixllm.rounding.columns.round_columns; block [N, L], L <= 128."""
    n, length = block.shape
    block = block.contiguous()
    start = block if origin is None else origin.contiguous()
    codes, errors = torch.empty_like(block), torch.empty_like(block)
    fields = torch.cat([grid.scale, grid.zero, grid.low, grid.high])
    _kernel[(triton.cdiv(n, ROWS),)](
        block, start, codes, errors, fields, upper.contiguous(), n,
        FROM_ORIGIN=origin is not None, LENGTH=length, ROWS=ROWS, COLUMNS=GROUP_SIZE,
    )  # fmt: skip
    return codes, errors
