"""Activation quantization joined with what comes before it in a decoder block, for engines that call it.

Both give what mixllm::quantize gives of the unfused layers' output, rounded to x's dtype where those round;
tiled and summed as there.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mixllm.errors import MixllmError
from mixllm.kernels.cuda import quantizing
from mixllm.kernels.cuda.arguments import TYPES
from mixllm.kernels.cuda.operator import fake, operator
from mixllm.kernels.cuda.quantizing import Fused

Quantized = tuple[Tensor, Tensor, Tensor, Tensor]


@operator("mixllm::rmsnorm_quantize")
def rmsnorm_quantize(
    x: Tensor, weight: Tensor, epsilon: float, rotate: bool, group: int, tiled: bool = False,
    summed: bool = False,
) -> Quantized:  # fmt: skip
    """x [T, K], weight [K] of x's dtype: quantize(weight * (x / sqrt(mean(x^2) + epsilon)))."""
    if weight.shape != x.shape[1:] or weight.dtype != x.dtype or weight.device != x.device:
        raise MixllmError(f"rmsnorm_quantize: weight must be [{x.shape[1]}] {x.dtype} on {x.device}")
    rows = x if x.stride(1) == 1 else x.contiguous()
    return _run(rows, Fused(1, weight.contiguous(), epsilon), rotate, group, tiled, summed)


@fake("mixllm::rmsnorm_quantize")
def _rmsnorm_quantized_like(
    x: Tensor, weight: Tensor, epsilon: float, rotate: bool, group: int, tiled: bool = False,
    summed: bool = False,
) -> Quantized:  # fmt: skip
    return quantizing.outputs(x, group, tiled, summed)


@operator("mixllm::silu_mul_quantize")
def silu_mul_quantize(
    x: Tensor, rotate: bool, group: int, tiled: bool = False, summed: bool = False
) -> Quantized:
    """x [T, 2 K], gate and up side by side as one joined linear gives them: quantize(silu(gate) * up)."""
    if x.shape[1] % 2:
        raise MixllmError(f"silu_mul_quantize: x has {x.shape[1]} columns; gate and up must be equally wide")
    if x.stride(1) != 1:
        x = x.contiguous()
    gate, up = x.chunk(2, dim=1)
    return _run(gate, Fused(2, up), rotate, group, tiled, summed)


@fake("mixllm::silu_mul_quantize")
def _silu_mul_quantized_like(
    x: Tensor, rotate: bool, group: int, tiled: bool = False, summed: bool = False
) -> Quantized:
    return quantizing.outputs(x[:, : x.shape[1] // 2], group, tiled, summed)


def _run(x: Tensor, fused: Fused, rotate: bool, group: int, tiled: bool, summed: bool) -> Quantized:
    if x.dtype not in TYPES:
        raise MixllmError(f"quantize: input is {x.dtype}; give float16, bfloat16 or float32")
    out = quantizing.outputs(x, group, tiled, summed)
    if len(x):
        with torch.cuda.device(x.device):
            quantizing.quantize_into(x, rotate, group, *out, fused)
    return out
