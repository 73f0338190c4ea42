"""Blocks of 128 of mixllm.rotation as one Triton kernel, which reads and writes once and not at each step."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mixllm.current import current

ROWS, BLOCK = 8, 128


@triton.jit  # type: ignore[untyped-decorator]  # triton has no types
def _kernel(  # type: ignore[no-untyped-def]  # nor can it read Any in an annotation
    x_ptr,
    y_ptr,
    row_stride,
    column_stride,
    rows,
    columns,
    SCALE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK).to(tl.int64)
    inside = (row < rows)[:, None]
    place = row[:, None] * row_stride + column[None, :] * column_stride
    x = tl.load(x_ptr + place, mask=inside, other=0.0).to(tl.float32)
    for step in tl.static_range(7):
        pairs = tl.reshape(x, (ROWS, BLOCK >> (step + 1), 2, 1 << step))
        a, b = tl.split(tl.permute(pairs, (0, 1, 3, 2)))
        x = tl.reshape(tl.permute(tl.join(a + b, a - b), (0, 1, 3, 2)), (ROWS, BLOCK))
    tl.store(y_ptr + row[:, None] * columns + column[None, :], x * SCALE, mask=inside)


def launch(x: Tensor) -> Tensor:
    """x [R, 128 n], of any strides -> float32 [R, 128 n], in the arithmetic of mixllm.rotation.rotate."""
    rows, columns = x.shape
    y = torch.empty((rows, columns), dtype=torch.float32, device=x.device)
    with current(x):
        _kernel[(triton.cdiv(rows, ROWS), columns // BLOCK)](
            x, y, *x.stride(), rows, columns, SCALE=BLOCK**-0.5, ROWS=ROWS, BLOCK=BLOCK
        )
    return y
