"""What the kernels of a product are given, as csrc/epilogue.cuh names it."""

from __future__ import annotations

import ctypes
from ctypes import c_int, c_void_p

import torch
from torch import Tensor

from mixllm.config import GROUP_SIZE

TYPES = {torch.float16: 0, torch.bfloat16: 1, torch.float32: 2}


class Outputs(ctypes.Structure):
    _fields_ = [
        ("rows", c_void_p), ("row_scales", c_void_p), ("x_sums", c_void_p), ("bias", c_void_p),
        ("y", c_void_p), ("channels", c_int), ("type", c_int),
    ]  # fmt: skip


class Shape(ctypes.Structure):
    _fields_ = [
        (name, c_int) for name in ("tokens", "rows8", "rows4", "groups", "split", "cost8", "cost4", "band")
    ]


class Gemm(ctypes.Structure):
    _fields_ = [
        ("codes8", c_void_p), ("codes4", c_void_p), ("scales8", c_void_p), ("scales4", c_void_p),
        ("x", c_void_p), ("x_scales", c_void_p), ("partials", c_void_p), ("flags", c_void_p),
        ("out", Outputs), ("shape", Shape), ("x_stride", c_int), ("x_group_shift", c_int),
        ("blocks", c_void_p),
    ]  # fmt: skip


def gemm_arguments(
    y: Tensor, codes: Tensor | None, x_scales: Tensor | None, sums: Tensor | None, partials: Tensor | None,
    flags: Tensor | None, weight: list[Tensor], bias: Tensor | None, group: int, shape: Shape,
) -> Gemm:  # fmt: skip
    """What csrc/epilogue.cuh calls Arguments; partials and flags only where something is cut along K, and
    no codes, scales and sums where the kernel makes them."""
    codes8, codes4, scales8, scales4, rows, row_scales, *blocks = weight

    def address(tensor: Tensor | None) -> int | None:
        return None if tensor is None else tensor.data_ptr()

    return Gemm(
        codes8.data_ptr(), codes4.data_ptr(), scales8.data_ptr(), scales4.data_ptr(),
        address(codes), address(x_scales), address(partials), address(flags),
        Outputs(rows.data_ptr(), row_scales.data_ptr(), address(sums), address(bias), y.data_ptr(),
                y.shape[1], TYPES[y.dtype]),
        shape, -(-shape.tokens // 4) * 4 if x_scales is None else x_scales.shape[1],
        (max(group, GROUP_SIZE) // GROUP_SIZE).bit_length() - 1,
        address(blocks[0] if blocks else None),
    )  # fmt: skip
