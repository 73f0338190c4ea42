"""The two operations as torch sees them: quantize activations, multiply by a mixed weight.

They are plain torch operators with fake implementations, on the current stream of the tensors' device. A call
compiles nothing that mixllm.kernels.cuda.warm_up has compiled before, and tunes, prints and awaits nothing.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from mixllm.config import GROUP_SIZE
from mixllm.errors import MixllmError
from mixllm.kernels.cuda.arguments import TYPES, Shape, gemm_arguments
from mixllm.kernels.cuda.launch import Kernel, device, kernel
from mixllm.kernels.cuda.operator import fake, operator
from mixllm.kernels.cuda.quantizing import outputs, quantize_into
from mixllm.kernels.cuda.tiles import Scales, Tile, choose, shared_bytes

BAND = 16


@operator("mixllm::quantize")
def quantize(
    x: Tensor, rotate: bool, group: int, tiled: bool = False, summed: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x [T, K] -> codes int8 [T, 128 G], scales float32 [A, T'] (T' = T rounded up to 4), sums of a token's
    codes int32 [T], and cleared flags for the product. group 0: one scale a token. tiled: codes are
    [G, T, 128] in the order that mixllm.kernels.cuda.hopper wants; summed: and unsigned, 128 too much, and
    behind them are ceil(G / 16) more lines with the sums of groups (csrc/activations.cuh)."""
    if x.stride(1) != 1 and x.shape[1] > 1:
        x = x.contiguous()
    out = outputs(x, group, tiled, summed)
    if len(x):
        with torch.cuda.device(x.device):
            quantize_into(x, rotate, group, *out)
    return out


@fake("mixllm::quantize")
def _quantized_like(
    x: Tensor, rotate: bool, group: int, tiled: bool = False, summed: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return outputs(x, group, tiled, summed)


@operator("mixllm::gemm", ("flags",))
def gemm(
    codes: Tensor, x_scales: Tensor, sums: Tensor, flags: Tensor, weight: list[Tensor], bias: Tensor | None,
    channels: int, dtype: torch.dtype, weight_scales: int, group: int,
) -> Tensor:  # fmt: skip
    """Quantized activations times a mixed weight -> y [T, channels]; flags are 0 before and after."""
    y = codes.new_empty((len(codes), channels), dtype=dtype)
    if y.numel():
        scales = Scales(weight_scales, group == 0)
        tile = choose(scales, len(codes), device(y.device.index).shared_limit)
        with torch.cuda.device(y.device):
            gemm_into(y, codes, x_scales, sums, flags, weight, bias, scales, group, tile)
    return y


@fake("mixllm::gemm")
def _gemm_like(
    codes: Tensor, x_scales: Tensor, sums: Tensor, flags: Tensor, weight: list[Tensor], bias: Tensor | None,
    channels: int, dtype: torch.dtype, weight_scales: int, group: int,
) -> Tensor:  # fmt: skip
    return codes.new_empty((codes.shape[0], channels), dtype=dtype)


def gemm_into(
    y: Tensor, codes: Tensor, x_scales: Tensor, sums: Tensor, flags: Tensor, weight: list[Tensor],
    bias: Tensor | None, scales: Scales, group: int, tile: Tile,
) -> None:  # fmt: skip
    """The product kernel with a given tile. weight: codes8, codes4, scales8, scales4, rows, row_scales."""
    codes8, codes4 = weight[:2]
    target = device(y.device.index)
    run = product(target.index, scales, tile)
    blocks = target.multiprocessors * tile.blocks
    tokens, groups = len(codes), codes.shape[1] // GROUP_SIZE
    per_tile = tile.bm // 16
    tiles = (-(-len(codes8) // per_tile) + -(-len(codes4) // per_tile)) * -(-tokens // tile.bn)
    # Whole waves go round the blocks; what is left over, and all where there is less than two waves, is cut.
    cut = tiles if tiles < 2 * blocks else tiles % blocks
    # An 8-bit slot is half the inputs of a 4-bit one: as many bytes to read, half the products to compute.
    cost4 = 2 if tile.bn >= 64 else 1
    if 2 * blocks * groups * 2 * blocks >= 2**31:
        raise MixllmError(f"mixed linear: {codes.shape[1]} inputs are more than the schedule's 32 bits hold")
    if blocks * (tile.wm if tile.stream else 1) > flags.numel():
        raise MixllmError(f"mixed linear: {blocks} blocks need more than {flags.numel()} flags")
    partials = torch.empty(blocks * tile.bm * tile.bn if cut else 0, dtype=torch.int32, device=y.device)
    shape = Shape(tokens, len(codes8), len(codes4), groups, cut, 1, cost4, BAND)
    run.launch(
        blocks,
        tile.threads,
        gemm_arguments(y, codes, x_scales, sums, partials, flags, weight, bias, group, shape),
    )


@cache
def product(index: int, scales: Scales, tile: Tile) -> Kernel:
    macros = {**tile.macros(), **scales.macros()}
    return kernel(tile.source, "mixed_gemm", tuple(macros.items()), index, shared_bytes(tile, scales))


def check_input(x: Tensor, inputs: int, bias: Tensor | None, channels: int, where: torch.device) -> None:
    """Raises MixllmError for what the kernels don't take, before anything is launched."""
    if x.device != where:
        raise MixllmError(f"mixed linear: input is on {x.device}, weight on {where}; move one")
    if x.dtype not in TYPES:
        raise MixllmError(f"mixed linear: input is {x.dtype}; give float16, bfloat16 or float32")
    if x.shape[-1] != inputs:
        raise MixllmError(f"mixed linear: input has {x.shape[-1]} features, weight {inputs}")
    if bias is not None and (bias.shape != (channels,) or bias.device != where):
        raise MixllmError(f"mixed linear: bias must be [{channels}] on {where}")
