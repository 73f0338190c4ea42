"""over_tokens as one Triton kernel: a program takes 128 channels at one width through a window's tokens."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mixllm.current import current

TOKENS, COLUMNS = 16, 128


@triton.jit  # type: ignore[untyped-decorator]  # triton has no types
def _kernel(  # type: ignore[no-untyped-def]  # nor can it read Any in an annotation
    delta_ptr,
    e_ptr,
    sums_ptr,
    squares_ptr,
    n,
    widths,
    LENGTH: tl.constexpr,
    TOKENS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    width, window = tl.program_id(1), tl.program_id(2).to(tl.int64)
    delta_ptr += window * LENGTH * n
    e_ptr += window * LENGTH * n * widths + width * n
    sums = tl.zeros((TOKENS, COLUMNS), tl.float32)
    squares = tl.zeros((TOKENS, COLUMNS), tl.float32)
    for start in range(0, LENGTH, TOKENS):
        token = start + tl.arange(0, TOKENS)
        inside = (token < LENGTH)[:, None] & (column < n)[None, :]
        place = token.to(tl.int64)[:, None] * n
        delta = tl.load(delta_ptr + place + column[None, :], mask=inside, other=0.0).to(tl.float32)
        e = tl.load(e_ptr + place * widths + column[None, :], mask=inside, other=0.0).to(tl.float32)
        product = delta * e
        sums += product
        squares += product * product
    place = (window * widths + width) * n + column
    tl.store(sums_ptr + place, tl.sum(sums, axis=0), mask=column < n)
    tl.store(squares_ptr + place, tl.sum(squares, axis=0), mask=column < n)


def launch(delta: Tensor, e: Tensor) -> tuple[Tensor, Tensor]:
    """See mixllm.salience.sums.over_tokens."""
    windows, tokens, n = delta.shape
    widths = e.shape[2] // n
    sums, squares = (delta.new_empty(windows, widths, n, dtype=torch.float32) for _ in range(2))
    with current(delta):
        _kernel[(triton.cdiv(n, COLUMNS), widths, windows)](
            delta.contiguous(), e.contiguous(), sums, squares, n, widths,
            LENGTH=tokens, TOKENS=TOKENS, COLUMNS=COLUMNS,
        )  # fmt: skip
    return sums, squares
