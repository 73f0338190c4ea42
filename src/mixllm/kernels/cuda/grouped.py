"""All experts of a mixture in one launch a layer (csrc/grouped.cu), tokens in the order of routing.py."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from ctypes import c_void_p
from typing import cast

import torch
from torch import Tensor

from mixllm.config import GROUP_SIZE, Format
from mixllm.format.mixed import MixedWeight
from mixllm.kernels.cuda import ops, quantizing
from mixllm.kernels.cuda.arguments import Gemm, Shape, gemm_arguments
from mixllm.kernels.cuda.launch import Kernel, device, kernel
from mixllm.kernels.cuda.layout import to_kernel_order
from mixllm.kernels.cuda.operator import fake, operator
from mixllm.kernels.cuda.routing import route, router
from mixllm.kernels.cuda.tiles import Scales, Tile, choose_whole, shared_bytes, table

# Blocks of a launch, in what resides on the GPU at once: most find nothing to do, which takes a microsecond.
WAVES = 16


class _Group(ctypes.Structure):
    _fields_ = [("all", Gemm), ("experts", c_void_p), ("tokens", c_void_p)]


class GroupedLinear:
    """One linear layer of every expert: all have K inputs and N rows, each its own rows of either width."""

    def __init__(self, stored: Sequence[MixedWeight], format: Format, where: torch.device) -> None:
        weights = [to_kernel_order(_moved(weight, _scale_type(stored), where), format) for weight in stored]
        first = weights[0]
        self.in_features, self.out_features = first.in_features, first.out_features
        self.count, self.rotate = len(weights), format.rotation == "hadamard"
        self.scales = Scales.of(format, first.scales4.shape[2] > 48)
        self.group = 0 if format.activation_group == "token" else format.activation_group
        names = ("codes8", "codes4", "scales8", "scales4", "rows", "row_scales")
        self.tensors = [torch.cat([getattr(weight, name) for weight in weights]) for name in names]
        sizes = torch.tensor([(len(weight.codes8), len(weight.codes4)) for weight in weights])
        before = sizes.cumsum(0) - sizes
        table = torch.stack((before[:, 0], sizes[:, 0], before[:, 1], sizes[:, 1]), 1)
        self.most_tiles = int(sizes.sum(1).max())
        self.experts = table.int().to(first.rows.device)

    def __call__(self, x: Tensor, ranges: Tensor) -> Tensor:
        """x [P, K] by places of a routing -> y [P, N]; rows of empty places are not written."""
        ops.check_input(x, self.in_features, None, self.out_features, self.experts.device)
        codes, x_scales, sums, _ = ops.quantize(x, self.rotate, self.group)
        table = (self.experts, ranges, self.most_tiles)
        rest = (self.out_features, x.dtype, self.scales.weight, self.group)
        return cast(Tensor, gemm_grouped(codes, x_scales, sums, self.tensors, *table, *rest))


def grouped_into(
    y: Tensor, codes: Tensor, x_scales: Tensor, sums: Tensor, weight: list[Tensor], experts: Tensor,
    ranges: Tensor, most_tiles: int, scales: Scales, group: int, tile: Tile,
) -> None:  # fmt: skip
    """The kernel with a given tile; rows of y that belong to no token stay as they are."""
    target = device(y.device.index)
    resident = target.multiprocessors * tile.blocks
    # An expert's most tiles: all tokens, and one more of each width that is not full.
    tiles = (-(-most_tiles // (tile.bm // 16)) + 1) * -(-len(y) // tile.bn)
    blocks = min(tiles, resident, max(WAVES * resident // len(experts), 1))
    shape = Shape(0, 0, 0, codes.shape[1] // GROUP_SIZE, 0, 1, 2 if tile.bn >= 64 else 1, ops.BAND)
    every = gemm_arguments(y, codes, x_scales, sums, None, None, weight, None, group, shape)
    arguments = _Group(every, experts.data_ptr(), ranges.data_ptr())
    product(target.index, scales, tile).launch(blocks, tile.threads, arguments, len(experts))


def product(index: int, scales: Scales, tile: Tile) -> Kernel:
    macros = {**tile.macros(), **scales.macros()}
    return kernel("grouped.cu", "grouped_gemm", tuple(macros.items()), index, shared_bytes(tile, scales))


@operator("mixllm::gemm_grouped")
def gemm_grouped(
    codes: Tensor, x_scales: Tensor, sums: Tensor, weight: list[Tensor], experts: Tensor, ranges: Tensor,
    most_tiles: int, channels: int, dtype: torch.dtype, weight_scales: int, group: int,
) -> Tensor:  # fmt: skip
    """Quantized tokens in the order of their experts times each one's mixed weight -> y [P, channels]."""
    y = codes.new_empty((len(codes), channels), dtype=dtype)
    if y.numel():
        scales = Scales(weight_scales, group == 0)
        # For the tokens that an expert has on average.
        mean = -(-len(codes) // len(experts))
        tile = choose_whole(scales, mean, device(y.device.index).shared_limit)
        with torch.cuda.device(y.device):
            grouped_into(y, codes, x_scales, sums, weight, experts, ranges, most_tiles, scales, group, tile)
    return y


@fake("mixllm::gemm_grouped")
def _gemm_grouped_like(
    codes: Tensor, x_scales: Tensor, sums: Tensor, weight: list[Tensor], experts: Tensor, ranges: Tensor,
    most_tiles: int, channels: int, dtype: torch.dtype, weight_scales: int, group: int,
) -> Tensor:  # fmt: skip
    return codes.new_empty((codes.shape[0], channels), dtype=dtype)


class GroupedExperts:
    """Every expert's gate and up (joined) and down, with the gating [P, 2 I] -> [P, I] between them."""

    def __init__(
        self, experts: Sequence[tuple[MixedWeight, MixedWeight]], format: Format,
        gate: Callable[[Tensor], Tensor], where: torch.device,
    ) -> None:  # fmt: skip
        """Raises MixllmError for a GPU older than sm_80 or where NVRTC is missing."""
        self.up, self.down = (
            GroupedLinear([pair[part] for pair in experts], format, where) for part in (0, 1)
        )
        self.gate = gate
        router(where.index, self.up.count)
        warm_up(self.up)
        warm_up(self.down)

    def __call__(self, x: Tensor, weights: Tensor, ids: Tensor) -> Tensor:
        """x [T, H], each token's experts int64 [T, k] and their weights [T, k] -> [T, H]."""
        if not len(x):
            return torch.zeros_like(x)
        token, place, ranges = route(ids, self.up.count)
        y = self.down(self.gate(self.up(x[token], ranges)), ranges)
        each = y[place] * weights.unsqueeze(2).float()
        return each.sum(1).to(x.dtype)


def warm_up(linear: GroupedLinear) -> None:
    """Compile and load every kernel that a call may launch, so that none is compiled in it."""
    index = linear.experts.device.index
    for most, tile in table(linear.scales.key):
        if not tile.stream:
            product(index, linear.scales, choose_whole(linear.scales, most, device(index).shared_limit))
    padded, tail = linear.tensors[1].shape[1] * GROUP_SIZE, linear.in_features % GROUP_SIZE > 0
    clusters = device(index).capability >= (9, 0)
    for vectors, parts in quantizing.launch_shapes(padded, clusters, linear.group):
        for dtype in (torch.float16, torch.bfloat16):
            quantizing.quantizer(index, dtype, vectors, linear.rotate, tail, linear.group, parts=parts)


def _scale_type(stored: Sequence[MixedWeight]) -> torch.dtype:
    """The widest of the experts' scales: the kernel takes one type."""
    kinds = {scales.dtype for weight in stored for scales in (weight.scales4, weight.scales8)}
    return torch.float32 if torch.float32 in kinds else torch.float16


def _moved(weight: MixedWeight, scales: torch.dtype, where: torch.device) -> MixedWeight:
    tensors = {name: tensor.to(where) for name, tensor in weight.tensors().items()}
    tensors |= {name: tensors[name].to(scales) for name in ("scales4", "scales8")}
    return MixedWeight(weight.in_features, **tensors)
