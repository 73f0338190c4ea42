"""round_columns as one Triton kernel: rows are independent, so a warp takes a few through all columns.

A warp's rows stay in registers, 128 x ROWS, and no warp waits for another. Step j picks column j out by a
masked sum, rounds it, and subtracts error * upper[j, :] from all columns; those before are looked at no more.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from mixllm.config import GROUP_SIZE
from mixllm.current import current
from mixllm.rounding.grid import Grid
from mixllm.rounding.products import KEPT

# Rows a program takes where there are many, and else (measured on an H200: 84 us for 112 with 8, 4,680 rows).
MANY, ROWS, ROWS_OF_FEW = 2**14, 8, 2


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
    # In how many parts errors are stored, one length * n after the other, and what the first ones keep.
    PARTS: tl.constexpr,
    KEPT: tl.constexpr,
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
        if PARTS == 1:
            tl.store(errors_ptr + place, error, mask=inside)
        else:
            most = (error.to(tl.int32, bitcast=True) & KEPT).to(tl.float32, bitcast=True)
            tl.store(errors_ptr + place, most, mask=inside)
            tl.store(errors_ptr + LENGTH * n + place, most, mask=inside)
            tl.store(errors_ptr + 2 * LENGTH * n + place, error - most, mask=inside)
        upper = tl.load(
            upper_ptr + j * upper_stride + column[:, None], mask=(column < LENGTH)[:, None], other=0.0
        )
        w -= upper * error[None, :]
        place += n


def launch(block: Tensor, grid: Grid, upper: Tensor, origin: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """See mixllm.rounding.columns.round_columns; block [N, L], L <= 128. The results lie by columns."""
    by_column = block.T.contiguous()
    start = by_column if origin is None else origin.T.contiguous()
    codes, errors = torch.empty_like(by_column), torch.empty_like(by_column)
    fields = [field.contiguous() for field in (grid.scale, grid.zero, grid.low, grid.high)]
    launch_into(
        codes, errors, by_column, start, fields, upper if upper.stride(1) == 1 else upper.contiguous()
    )
    return codes.T, errors.T


def launch_into(
    codes: Tensor, errors: Tensor, block: Tensor, origin: Tensor, fields: Sequence[Tensor], upper: Tensor
) -> None:
    """round_columns of a block [L, N] by columns, into codes [L, N] and errors.

    errors: [L, N], or [3 L, N] for their upper bits twice and the rest (see mixllm.rounding.products).
    fields: a Grid's first four, [N] each. origin: [L, N], the block itself for GPTQ. All are without gaps,
    upper within its rows.
    """
    length, n = block.shape
    rows = ROWS if n >= MANY else ROWS_OF_FEW
    with current(block):
        _kernel[(triton.cdiv(n, rows),)](
            block, origin, codes, errors, *fields, upper, upper.stride(0), n,
            PARTS=len(errors) // length, KEPT=KEPT, FROM_ORIGIN=origin is not block,
            LENGTH=length, ROWS=rows, COLUMNS=GROUP_SIZE, num_warps=1,
        )  # fmt: skip
