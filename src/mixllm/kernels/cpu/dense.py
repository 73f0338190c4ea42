"""A product with a weight that is not quantized, for a few tokens, at the speed of memory."""

from __future__ import annotations

import ctypes
from ctypes import byref, c_int32, c_int64, c_void_p

from torch import Tensor

from mixllm.kernels.cpu.library import load
from mixllm.kernels.cpu.ops import TYPES


class Dense(ctypes.Structure):
    """MixllmDense of csrc/decoder.h."""

    _fields_ = [
        *((name, c_void_p) for name in ("x", "weight", "y")),
        *((name, c_int64) for name in ("tokens", "inputs", "outputs")),
        ("type", c_int32), ("isa", c_int32),
    ]  # fmt: skip


def dense(x: Tensor, weight: Tensor, isa: int = 0) -> Tensor:
    """x [T, K], weight [N, K] -> [T, N], summed in float32; contiguous, on the CPU, of one dtype of TYPES."""
    y = x.new_empty(x.shape[0], weight.shape[0])
    step = Dense(
        x.data_ptr(), weight.data_ptr(), y.data_ptr(), *x.shape, weight.shape[0], TYPES[x.dtype], isa
    )
    load().mixllm_dense(byref(step))
    return y
