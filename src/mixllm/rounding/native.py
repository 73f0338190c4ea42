"""The clip search and GPTQ's inner loop by the library: what is some hundred steps of torch for a group of
inputs, in one for a few rows at a time that stay in a core's cache.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import byref, c_int32, c_int64, c_void_p

import torch
from torch import Tensor

from mixllm.kernels.cpu.library import load
from mixllm.rounding.grid import Grid, Grids


class Clip(ctypes.Structure):
    """MixllmClip of csrc/rounding.h."""

    _fields_ = [
        *((name, c_void_p) for name in ("w", "importance", "shrinks", "by_row", "fields")),
        *((name, c_int64) for name in ("length", "rows", "steps")),
        ("group_floats", c_int32), ("isa", c_int32),
    ]  # fmt: skip


class Columns(ctypes.Structure):
    """MixllmColumns of csrc/rounding.h."""

    _fields_ = [
        *((name, c_void_p) for name in ("w", "origin", "scale", "zero", "low", "high")),
        *((name, c_void_p) for name in ("upper", "codes", "errors")),
        *((name, c_int64) for name in ("length", "rows", "pitch")),
        ("isa", c_int32),
    ]  # fmt: skip


def best_grid(grids: Grids, w: Tensor, importance: Tensor, shrinks: Sequence[float], isa: int = 0) -> Grid:
    """The best of some shrinks, see mixllm.rounding.clip.best_grid; w float32 [N, L], L <= 128, of one group
    of a weight that has scales by groups."""
    by_column, weights, tried = w.T.contiguous(), importance.contiguous(), torch.tensor(shrinks)
    fields = w.new_empty(5, len(w))
    given = (by_column, weights, tried, grids.by_row, fields)
    work = Clip(
        *(tensor.data_ptr() for tensor in given), *by_column.shape, len(shrinks), grids.kind == "group", isa
    )
    load().mixllm_best_grid(byref(work))
    return Grid(*fields[:, :, None])


def round_columns(
    block: Tensor, grid: Grid, upper: Tensor, origin: Tensor | None, isa: int = 0
) -> tuple[Tensor, Tensor]:
    """See mixllm.rounding.columns.round_columns; block float32 [N, L], L <= 128. The results lie by
    columns."""
    by_column, rows = block.T.contiguous(), upper if upper.stride(1) == 1 else upper.contiguous()
    start = None if origin is None else origin.T.contiguous()
    fields = [field.contiguous() for field in (grid.scale, grid.zero, grid.low, grid.high)]
    codes, errors = torch.empty_like(by_column), torch.empty_like(by_column)
    work = Columns(
        by_column.data_ptr(), None if start is None else start.data_ptr(),
        *(tensor.data_ptr() for tensor in (*fields, rows, codes, errors)),
        *by_column.shape, rows.stride(0), isa,
    )  # fmt: skip
    load().mixllm_round_columns(byref(work))
    return codes.T, errors.T
