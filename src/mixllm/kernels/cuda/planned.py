"""Layers on as many tokens as before: the same two launches, with other addresses.

Working out what to launch takes a CPU several times as long as launching it. An engine that runs layers one
by one, outside a CUDA graph, would wait for that at a few hundred tokens, and each of its steps has another
number of them; so it is done once for all layers of the same sizes.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mixllm.kernels.cuda import hopper, quantizing, skinny
from mixllm.kernels.cuda.arguments import Gemm, Shape, gemm_arguments
from mixllm.kernels.cuda.launch import Launch, recorded
from mixllm.kernels.cuda.operator import untraced
from mixllm.kernels.cuda.tiles import Scales

# What layers of the same sizes remember; an engine that meets more numbers of tokens works them out again.
MOST_PLANS = 1024
ALIGNMENT = 256

Where = tuple[torch.Size, tuple[int, ...], torch.dtype]  # shape, strides and dtype of x


@dataclass(frozen=True)
class Plan:
    """quantize, gemm: as they were launched; the rest: where buffers begin in a workspace, after the codes,
    and its bytes."""

    quantize: Launch
    gemm: Launch
    scales: int
    sums: int
    flags: int
    partials: int
    bytes: int

    @classmethod
    def of(cls, launches: list[Launch], buffers: tuple[Tensor, ...]) -> Plan:
        """buffers: codes, scales, sums, flags and partial sums that the launches had."""
        starts = [0]
        for buffer in buffers:
            starts.append(-(-(starts[-1] + buffer.nbytes) // ALIGNMENT) * ALIGNMENT)
        quantize, gemm = launches
        return cls(quantize, gemm, *starts[1:])

    def run(self, x: Tensor, bias: Tensor | None, weight: Gemm) -> Tensor:
        """x [T, K] -> y [T, channels]; x has the T, dtype and distance of rows of the launches' and begins on
        16 bytes. weight: the layer's own arguments."""
        y = torch.empty((x.shape[0], weight.out.channels), dtype=x.dtype, device=x.device)
        workspace = torch.empty(self.bytes, dtype=torch.uint8, device=x.device)
        start = workspace.data_ptr()
        scales, sums, flags = start + self.scales, start + self.sums, start + self.flags
        first, second, planned = _copy(self.quantize.arguments), _copy(weight), self.gemm.arguments
        first.x, first.codes, first.scales, first.sums, first.flags = x.data_ptr(), start, scales, sums, flags
        second.x, second.x_scales, second.flags, second.partials = start, scales, flags, start + self.partials
        second.x_stride = planned.x_stride
        out, shape, like = second.out, second.shape, planned.shape
        out.x_sums, out.y, out.type = sums, y.data_ptr(), planned.out.type
        out.bias = None if bias is None else bias.data_ptr()
        shape.tokens, shape.split, shape.band = like.tokens, like.split, like.band
        self.quantize.repeat(first)
        self.gemm.repeat(second)
        return y


# Of all layers, by what a plan depends on beside x.
_PLANS: dict[tuple[Any, ...], dict[Where, Plan]] = {}


class Planned:
    """A layer's calls with many tokens on Hopper.

    weight: codes8, codes4, scales8, scales4, rows, row_scales, blocks; group: of activations, 0 for the whole
    token; channels: of its output.
    """

    def __init__(self, weight: list[Tensor], scales: Scales, rotate: bool, group: int, channels: int) -> None:
        self.weight, self.scales, self.rotate, self.group = weight, scales, rotate, group
        self.channels, self.index = channels, weight[0].get_device()
        codes8, codes4 = weight[:2]
        rows16, groups = len(codes8) + len(codes4), codes4.shape[1]
        alike = (self.index, scales, rotate, group, channels, rows16, groups)
        self.plans = _PLANS.setdefault(alike, {})
        shape = Shape(0, len(codes8), len(codes4), groups, 0, 1, 1, 0)
        empty = codes4.new_empty((0, channels), dtype=torch.float16)
        self.arguments = gemm_arguments(empty, None, None, None, None, None, weight, None, group, shape)

    def __reduce__(self) -> tuple[Callable[..., Planned], tuple[Any, ...]]:
        """A copy has a weight, and so addresses, of its own."""
        return Planned, (self.weight, self.scales, self.rotate, self.group, self.channels)

    def again(self, x: Tensor, bias: Tensor | None) -> Tensor | None:
        """x [T, K] -> y [T, channels] where such an x was met before; None where not, or torch traces the
        call, or the bias is none. bias: of x's dtype."""
        if not untraced(x) or x.data_ptr() % 16 or x.get_device() != self.index:
            return None
        plan = self.plans.get((x.shape, x.stride(), x.dtype))
        if plan is None or (bias is not None and not self._takes(bias)):
            return None
        if self.index >= 0 and torch.cuda.current_device() != self.index:
            with torch.cuda.device(self.index):
                return plan.run(x, bias, self.arguments)
        return plan.run(x, bias, self.arguments)

    def _takes(self, bias: Tensor) -> bool:
        return bias.shape == (self.channels,) and bias.get_device() == self.index

    def first(self, x: Tensor, bias: Tensor | None) -> Tensor | None:
        """x [T, K] -> y [T, channels], remembered; None where another kernel's turn it is, or `again` does
        not take x. bias: of x's dtype."""
        where = (x.device.index, self.scales, x.shape[0])
        if not hopper.takes(*where) or skinny.takes(*where, self.channels, self.weight[1].shape[1]):
            return None
        if not untraced(x) or x.stride(1) != 1 or x.data_ptr() % 16:
            return None
        with torch.cuda.device(x.device):
            y, buffers = (
                x.new_empty((x.shape[0], self.channels)),
                quantizing.outputs(x, self.group, True, self.scales.unsigned),
            )
            tile = hopper.best(buffers[0], self.weight, self.scales)
            with recorded() as launches:
                quantizing.quantize_into(x, self.rotate, self.group, *buffers)
                partials = hopper.gemm_into(y, *buffers, self.weight, bias, self.scales, self.group, tile)
        if len(self.plans) >= MOST_PLANS:
            self.plans.pop(next(iter(self.plans)), None)
        self.plans[x.shape, x.stride(), x.dtype] = Plan.of(launches, (*buffers, partials))
        return y


def _copy(arguments: ctypes.Structure) -> ctypes.Structure:
    """Another thread may be between filling in its own and launching."""
    return type(arguments).from_buffer_copy(arguments)
