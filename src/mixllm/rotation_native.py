"""mixllm.rotation.rotate by the CPU library, bit for bit: a row stays in registers for all its steps."""

from __future__ import annotations

import ctypes
from ctypes import byref, c_int32, c_int64, c_void_p

import torch
from torch import Tensor

from mixllm.kernels.cpu.library import load


class _Rotation(ctypes.Structure):
    """MixllmRotation of csrc/rounding.h."""

    _fields_ = [("x", c_void_p), ("rows", c_int64), ("inputs", c_int64), ("isa", c_int32)]


def launch(x: Tensor, isa: int = 0) -> Tensor:
    """x [T, K] on the CPU -> float32 [T, K]."""
    y = x.detach().to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    load().mixllm_rotate(byref(_Rotation(y.data_ptr(), *y.shape, isa)))
    return y
