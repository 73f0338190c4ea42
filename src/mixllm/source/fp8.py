"""Weights stored as 8-bit floats with a scale for each block of 128 x 128, as DeepSeek-V3 is published.

Beside a float8_e4m3fn tensor "x.weight" [N, K] there is "x.weight_scale_inv" [ceil(N / 128),
ceil(K / 128)]; in spite of its name each block is multiplied by it (DeepSeek-V3's README_WEIGHTS.md). The
products are kept as bfloat16, as DeepSeek's own conversion does.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mixllm.errors import MixllmError

SCALE = "_scale_inv"
MADE = "BF16"

Block = tuple[int, int]


def block_size(quantization: Any) -> Block | None:
    """Rows and columns that share a scale, by a config's quantization_config; None if that is of another
    kind."""
    if not isinstance(quantization, dict) or quantization.get("quant_method") != "fp8":
        return None
    match quantization.get("weight_block_size"):
        case [int(rows), int(columns)] if rows > 0 and columns > 0:
            return rows, columns
    return None


def dequantize(weight: Tensor, scale: Tensor, block: Block, where: str) -> Tensor:
    """float8 [N, K] and its scales -> bfloat16 [N, K]. MixllmError names `where` if the scales don't fit."""
    n, k = weight.shape
    rows, columns = block
    expected = (-(-n // rows), -(-k // columns))
    if tuple(scale.shape) != expected or not scale.is_floating_point():
        found = f"{list(scale.shape)} of {scale.dtype}"
        raise MixllmError(f"{where}{SCALE} is {found}, not {list(expected)} floats; download the model again")
    made = torch.empty(n, k, dtype=torch.bfloat16)
    for i, by_column in enumerate(scale.float()):  # a row of blocks at a time: float32 is never there for all
        part = slice(i * rows, (i + 1) * rows)
        made[part] = weight[part].float() * by_column.repeat_interleave(columns)[:k]
    return made
