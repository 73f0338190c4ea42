"""Products of float32 matrices in 16-bit fixed point: twice as fast as float32 where a CPU has VNNI.

A row of either matrix becomes integers of one scale, x ~ s q with |q| <= 32767 and ||q|| so small that
no product of two such rows exceeds 32 bits (by Cauchy's inequality ||q_x|| ||q_w|| < 2^31): the sum over the
inputs is exact, whatever its order. With rows of like numbers the integers have a root mean square of
46,000 / sqrt(K), 1,900 for K = 576, so that a product is off by some 2 parts in 10,000 of what such products
are: float16's rounding is as large, bfloat16's ten times. Whatever the numbers are,

    |y - x w'| <= s_x / 2 sum |w| + s_w / 2 sum |x| + K s_x s_w / 4      (+ float32 rounding of y)
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import byref, c_int32, c_int64, c_void_p

import torch
from torch import Tensor

from mixllm.kernels.cpu.library import available, instruction_sets, load

ROWS = 32
# Sets whose products in fixed point are faster than torch's in float32.
QUICK = ("amx", "avx512")


class _Rows(ctypes.Structure):
    """MixllmFixedRows of csrc/fixed_call.h."""

    _fields_ = [
        *((name, c_void_p) for name in ("x", "codes", "scales")),
        *((name, c_int64) for name in ("rows", "inputs", "pitch", "blocks")),
        ("isa", c_int32),
    ]  # fmt: skip


class _Product(ctypes.Structure):
    """MixllmFixed of csrc/fixed_call.h."""

    _fields_ = [
        *((name, c_void_p) for name in ("x", "codes", "scales", "y", "delta", "sums", "squares")),
        *((name, c_int64) for name in ("tokens", "inputs", "pitch", "outputs", "blocks", "length", "period")),
        ("isa", c_int32),
    ]  # fmt: skip


def quick() -> bool:
    """Whether this machine gains from them."""
    return available() and instruction_sets()[0] in QUICK


class FixedWeight:
    """A weight float32 [N, K] on the CPU as integers, 2 bytes a number; x [..., K] float32 ->
    x W' [..., N]."""

    def __init__(self, weight: Tensor, isa: int = 0) -> None:
        rows, inputs = weight.shape
        weight = weight.detach().float().contiguous()
        blocks = -(-rows // ROWS) * 2
        self.rows, self.inputs, self.isa = rows, inputs, isa
        self.codes = torch.empty(blocks, -(-inputs // 2), 16, 2, dtype=torch.int16)
        self.scales = torch.zeros(16 * blocks)
        work = _Rows(
            weight.data_ptr(), self.codes.data_ptr(), self.scales.data_ptr(),
            rows, inputs, inputs, blocks, isa,
        )  # fmt: skip
        load().mixllm_fixed_rows(byref(work))

    def __call__(self, x: Tensor) -> Tensor:
        """A row of x or of the weight that is not finite gives NaN."""
        y = x.new_empty(*x.shape[:-1], self.rows)
        self._run(x, [y, None, None, None], 1, 1)
        return y

    def sums(self, x: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
        """Of p = delta (x W') the sums over tokens of p and of p^2: float32 [B, N] of x [B, L, K].

        delta: float32 [B, L, P], where P divides N: each P outputs are multiplied by it.
        """
        delta = delta.contiguous()
        sums, squares = x.new_zeros(2, len(x), self.rows)
        self._run(x, [None, delta, sums, squares], x.shape[1], delta.shape[2])
        return sums, squares

    def _run(self, x: Tensor, others: Sequence[Tensor | None], length: int, period: int) -> None:
        """others: y, delta, sums and squares of csrc/fixed_call.h."""
        flat = x.detach().reshape(-1, self.inputs).contiguous()
        work = _Product(
            flat.data_ptr(), self.codes.data_ptr(), self.scales.data_ptr(),
            *(None if tensor is None else tensor.data_ptr() for tensor in others),
            len(flat), self.inputs, self.inputs, self.rows, len(self.codes), length, period, self.isa,
        )  # fmt: skip
        load().mixllm_fixed(byref(work))
