"""round_columns as one Triton kernel: rows are independent, so a warp takes a few through all columns.

A warp's rows stay in registers, 128 x ROWS, and no warp waits for another. Step j picks column j out by a
masked sum, rounds it, and subtracts error * upper[j, :] from all columns; those before are looked at no more.
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
    scale_ptr,
    zero_ptr,
    low_ptr,
    high_ptr,
    upper_ptr,
    upper_stride,
    n,
    FROM_ORIGIN: tl.constexpr,
    LENGTH: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    inside = row < n
    w = tl.load(
        w_ptr + column.to(tl.int64)[:, None] * n + row[None, :],
        mask=(column < LENGTH)[:, None] & inside[None, :],
        other=0.0,
    )
    scale = tl.load(scale_ptr + row, mask=inside, other=1.0)
    zero = tl.load(zero_ptr + row, mask=inside, other=0.0)
    low = tl.load(low_ptr + row, mask=inside, other=0.0)
    high = tl.load(high_ptr + row, mask=inside, other=0.0)
    place = row.to(tl.int64)
    for j in range(LENGTH):
        now = tl.sum(tl.where((column == j)[:, None], w, 0.0), axis=0)
        # Adding and taking away 1.5 * 2^23 rounds half to even; what is too large for it is clamped anyway.
        nearest = (tl.div_rn(now, scale) + 12582912.0) - 12582912.0
        code = tl.minimum(tl.maximum(nearest + zero, low), high)
        start = tl.load(origin_ptr + place, mask=inside, other=0.0) if FROM_ORIGIN else now
        error = (start - (code - zero) * scale) / tl.load(upper_ptr + j * upper_stride + j)
        tl.store(codes_ptr + place, code, mask=inside)
        tl.store(errors_ptr + place, error, mask=inside)
        upper = tl.load(
            upper_ptr + j * upper_stride + column[:, None], mask=(column < LENGTH)[:, None], other=0.0
        )
        w -= upper * error[None, :]
        place += n


def launch(block: Tensor, grid: Grid, upper: Tensor, origin: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """See mixllm.rounding.columns.round_columns; block [N, L], L <= 128. The results lie by columns."""
    n, length = block.shape
    by_column = block.T.contiguous()
    start = by_column if origin is None else origin.T.contiguous()
    codes, errors = torch.empty_like(by_column), torch.empty_like(by_column)
    fields = [field.contiguous() for field in (grid.scale, grid.zero, grid.low, grid.high)]
    upper = upper if upper.stride(1) == 1 else upper.contiguous()
    _kernel[(triton.cdiv(n, ROWS),)](
        by_column, start, codes, errors, *fields, upper, upper.stride(0), n,
        FROM_ORIGIN=origin is not None, LENGTH=length, ROWS=ROWS, COLUMNS=GROUP_SIZE, num_warps=1,
    )  # fmt: skip
    return codes.T, errors.T
