"""best_grid as one Triton kernel: a program tries every shrink on the group's weights of a few rows.

The arithmetic is that of mixllm.rounding.grid, step by step; only the error's sum may take another order.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from mixllm.config import GROUP_SIZE
from mixllm.current import current
from mixllm.format.rounded import LEAST_HALF, MOST_HALF
from mixllm.rounding.grid import Grid, Grids

# Rows a program takes where there are many, and else (measured on an H200: 62 for 85 us with 8, 29 for 39).
MANY, ROWS, ROWS_OF_FEW = 2**14, 16, 4
# Adding and taking away 1.5 * 2^23 rounds half to even; what is too large for it is clamped anyway.
MAGIC = tl.constexpr(12582912.0)


@triton.jit  # type: ignore[untyped-decorator]  # triton has no types
def _kernel(  # type: ignore[no-untyped-def]  # nor can it read Any in an annotation
    w_ptr,
    row_stride,
    column_stride,
    importance_ptr,
    shrinks_ptr,
    rows_ptr,
    fields_ptr,
    n,
    STEPS: tl.constexpr,
    GROUP_FLOATS: tl.constexpr,
    LENGTH: tl.constexpr,
    MOST: tl.constexpr,
    LEAST: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    inside = (row < n)[:, None] & (column < LENGTH)[None, :]
    place = row.to(tl.int64)[:, None] * row_stride + column.to(tl.int64)[None, :] * column_stride
    w = tl.load(w_ptr + place, mask=inside, other=0.0)
    importance = tl.load(importance_ptr + column, mask=column < LENGTH, other=0.0)
    top = tl.load(rows_ptr + row, mask=row < n, other=1.0)
    free = top != 127.0
    most = tl.load(rows_ptr + n + row, mask=row < n, other=1.0)
    # Whether the row's scales are float16, or the scale of the whole row.
    own = tl.load(rows_ptr + 2 * n + row, mask=row < n, other=1.0)
    down = tl.minimum(tl.min(w, axis=1), 0.0)
    up = tl.maximum(tl.max(w, axis=1), 0.0)
    bottom = tl.where(top > 15.0, -127.0, -128.0)
    least = tl.full((ROWS,), float("inf"), tl.float32)
    best_scale = tl.zeros((ROWS,), tl.float32)
    best_zero, best_first, best_last, best_multiplier = best_scale, best_scale, best_scale, best_scale
    for step in range(STEPS):
        shrink = tl.load(shrinks_ptr + step)
        low, high = down * shrink, up * shrink
        scale = tl.div_rn(tl.where(free, high - low, tl.maximum(-low, high)), top)
        multiplier = tl.full((ROWS,), 1.0, tl.float32)
        if GROUP_FLOATS:
            half = tl.minimum(scale, MOST).to(tl.float16).to(tl.float32)
            half = tl.where(scale > 0, tl.maximum(half, LEAST), half)
            scale = tl.where(own != 0, half, scale)
        else:
            steps = tl.div_rn(scale, own)
            steps = tl.where(top > 15.0, tl.ceil(steps), (steps + MAGIC) - MAGIC)
            multiplier = tl.minimum(tl.maximum(steps, 1.0), most)
            scale = own * multiplier
        scale = tl.where(scale > 0, scale, 1.0)
        zero = (tl.div_rn(-low, scale) + MAGIC) - MAGIC
        zero = tl.where(free, tl.minimum(tl.maximum(zero, 0.0), top), 0.0)
        first = tl.where(free, tl.maximum(zero + tl.ceil(tl.div_rn(bottom, multiplier)), 0.0), -127.0)
        last = tl.minimum(zero + tl.floor(tl.div_rn(127.0, multiplier)), top)
        code = (tl.div_rn(w, tl.broadcast_to(scale[:, None], w.shape)) + MAGIC) - MAGIC
        code = tl.minimum(tl.maximum(code + zero[:, None], first[:, None]), last[:, None])
        off = w - (code - zero[:, None]) * scale[:, None]
        error = tl.sum(off * off * importance[None, :], axis=1)
        better = (error < least) | (step == 0)
        least = tl.where(better, error, least)
        best_scale = tl.where(better, scale, best_scale)
        best_zero = tl.where(better, zero, best_zero)
        best_first = tl.where(better, first, best_first)
        best_last = tl.where(better, last, best_last)
        best_multiplier = tl.where(better, multiplier, best_multiplier)
    tl.store(fields_ptr + row, best_scale, mask=row < n)
    tl.store(fields_ptr + n + row, best_zero, mask=row < n)
    tl.store(fields_ptr + 2 * n + row, best_first, mask=row < n)
    tl.store(fields_ptr + 3 * n + row, best_last, mask=row < n)
    tl.store(fields_ptr + 4 * n + row, best_multiplier, mask=row < n)


@cache
def _on_device(values: tuple[float, ...], device: torch.device) -> Tensor:
    return torch.tensor(values, device=device)


def launch(grids: Grids, w: Tensor, importance: Tensor, shrinks: Sequence[float]) -> Grid:
    """The best of some shrinks, see mixllm.rounding.clip.best_grid; w [N, L], L <= 128, of one group."""
    fields = w.new_empty(5, len(w))
    launch_into(fields, grids, w, importance.contiguous(), shrinks)
    return Grid(*fields[:, :, None])


def launch_into(
    fields: Tensor, grids: Grids, w: Tensor, importance: Tensor, shrinks: Sequence[float]
) -> None:
    """The fields of the best Grid, float32 [5, N]; importance [L] without gaps."""
    n, length = w.shape
    rows = ROWS if n >= MANY else ROWS_OF_FEW
    with current(w):
        _kernel[(triton.cdiv(n, rows),)](
            w, *w.stride(), importance, _on_device(tuple(shrinks), w.device), grids.by_row, fields, n,
            STEPS=len(shrinks), GROUP_FLOATS=grids.kind == "group", LENGTH=length,
            MOST=MOST_HALF, LEAST=LEAST_HALF, ROWS=rows, COLUMNS=GROUP_SIZE,
        )  # fmt: skip
