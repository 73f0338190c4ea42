"""All experts of a mixture in one launch a layer (csrc/grouped.cu).

The tokens are put in the order of their experts, each expert's at a multiple of 4, which is where scales can be
copied 16 bytes at a time. How many an expert has stays on the GPU: sizes depend on the number of tokens
alone, so nothing is awaited and a CUDA graph can hold all of it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from ctypes import c_void_p
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from mixllm.config import Format
from mixllm.format.mixed import MixedWeight
from mixllm.kernels.cuda import ops
from mixllm.kernels.cuda.launch import Kernel, device, kernel
from mixllm.kernels.cuda.layout import KernelWeight, to_kernel_order
from mixllm.kernels.cuda.tiles import Scales, Tile, choose_whole, shared_bytes

# Blocks of a launch, in what resides on the GPU at once: most find nothing to do, which takes a microsecond.
WAVES = 16


class _Group(ctypes.Structure):
    _fields_ = [("all", ops.Gemm), ("experts", c_void_p), ("tokens", c_void_p)]


@dataclass(frozen=True)
class Routing:
    """Where tokens go; P = T k + 3 min(E, T k) places, of which some stay empty.

    token int64 [P]: which token lies in a place (0 in an empty one); place int64 [T, k]: where a token lies for
    each of its experts; ranges int32 [E, 2]: first place and number of an expert's tokens.
    """

    token: Tensor
    place: Tensor
    ranges: Tensor


def route(ids: Tensor, experts: int) -> Routing:
    """ids int64 or int32 [T, k]: each token's experts, in 0 .. experts - 1."""
    flat = ids.flatten().long()
    count = len(flat)
    held = torch.zeros(experts, dtype=torch.int64, device=ids.device)
    held.scatter_add_(0, flat, torch.ones_like(flat))
    room = (held + 3) // 4 * 4
    first = room.cumsum(0) - room
    order = flat.argsort(stable=True)
    expert = flat[order]
    rank = torch.arange(count, device=ids.device) - (held.cumsum(0) - held)[expert]
    places = first[expert] + rank
    token = torch.zeros(count + 3 * min(experts, count), dtype=torch.int64, device=ids.device)
    token[places] = order // ids.shape[1]
    place = torch.empty_like(flat)
    place[order] = places
    return Routing(token, place.view(ids.shape), torch.stack((first, held), 1).int())


class GroupedLinear:
    """One linear layer of every expert: all have K inputs and N rows, each its own rows of either width."""

    def __init__(self, weights: Sequence[KernelWeight], format: Format) -> None:
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
        y = x.new_empty((len(x), self.out_features))
        if y.numel():
            codes, x_scales, sums, _ = ops.quantize(x, self.rotate, self.group)
            with torch.cuda.device(x.device):
                self.multiply_into(y, codes, x_scales, sums, ranges)
        return y

    def multiply_into(self, y: Tensor, codes: Tensor, x_scales: Tensor, sums: Tensor, ranges: Tensor) -> None:
        target = device(y.device.index)
        tile = self.tile(len(y))
        per_tile = tile.bm // 16
        rows = -(-self.most_tiles // per_tile) + 1
        blocks = min(rows * -(-len(y) // tile.bn), target.multiprocessors * tile.blocks)
        blocks = min(blocks, max(WAVES * target.multiprocessors * tile.blocks // self.count, 1))
        shape = ops.Shape(0, 0, 0, codes.shape[1] // 128, 0, 1, 2 if tile.bn >= 64 else 1, ops.BAND)
        product(target.index, self.scales, tile).launch(
            blocks,
            tile.threads,
            _Group(
                ops.gemm_arguments(y, codes, x_scales, sums, None, None, self.tensors, None, self.group, shape),
                self.experts.data_ptr(),
                ranges.data_ptr(),
            ),
            self.count,
        )

    def tile(self, places: int) -> Tile:
        """For the tokens that an expert has on average."""
        mean = -(-places // self.count)
        return choose_whole(self.scales, mean, device(self.experts.device.index).shared_limit)


def product(index: int, scales: Scales, tile: Tile) -> Kernel:
    macros = {**tile.macros(), **scales.macros()}
    return kernel("grouped.cu", "grouped_gemm", tuple(macros.items()), index, shared_bytes(tile, scales))


class GroupedExperts:
    """Every expert's gate and up (joined) and down, with the gating [P, 2 I] -> [P, I] between them."""

    def __init__(
        self, experts: Sequence[tuple[MixedWeight, MixedWeight]], format: Format, gate: Callable[[Tensor], Tensor]
    ) -> None:
        """Raises MixllmError for a GPU older than sm_80 or where NVRTC is missing."""
        self.up, self.down = (
            GroupedLinear([to_kernel_order(pair[part], format) for pair in experts], format) for part in (0, 1)
        )
        self.gate = gate

    def __call__(self, x: Tensor, weights: Tensor, ids: Tensor) -> Tensor:
        """x [T, H], each token's experts int64 [T, k] and their weights [T, k] -> [T, H]."""
        if not len(x):
            return torch.zeros_like(x)
        routing = route(ids, self.up.count)
        y = self.down(self.gate(self.up(x[routing.token], routing.ranges)), routing.ranges)
        each = y[routing.place] * weights.unsqueeze(2).float()
        return cast(Tensor, each.sum(1).to(x.dtype))
