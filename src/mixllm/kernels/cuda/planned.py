"""A layer on as many tokens as before: the same two launches, with other addresses.

Working out what to launch takes a CPU several times as long as launching it. An engine that runs layers one
by one, outside a CUDA graph, would wait for that at a few hundred tokens; so it is done once.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor

from mixllm.kernels.cuda import hopper, quantizing, skinny
from mixllm.kernels.cuda.launch import Launch, recorded
from mixllm.kernels.cuda.operator import untraced
from mixllm.kernels.cuda.tiles import Scales

# What a layer remembers; an engine that meets more numbers of tokens at a time works them out again.
MOST_PLANS = 32
ALIGNMENT = 256


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

    def run(self, x: Tensor, bias: Tensor | None, channels: int) -> Tensor:
        """x [T, K] -> y [T, channels]; x has the T, dtype and distance of rows of the launches' and begins on
        16 bytes."""
        y = x.new_empty((x.shape[0], channels))
        workspace = torch.empty(self.bytes, dtype=torch.uint8, device=x.device)
        start = workspace.data_ptr()
        scales, sums, flags = start + self.scales, start + self.sums, start + self.flags
        first, second = _copy(self.quantize.arguments), _copy(self.gemm.arguments)
        first.x, first.codes, first.scales, first.sums, first.flags = x.data_ptr(), start, scales, sums, flags
        second.x, second.x_scales, second.flags, second.partials = start, scales, flags, start + self.partials
        out = second.out
        out.x_sums, out.y, out.bias = sums, y.data_ptr(), None if bias is None else bias.data_ptr()
        self.quantize.repeat(first)
        self.gemm.repeat(second)
        return y


class Planned:
    """A layer's calls with many tokens on Hopper.

    weight: codes8, codes4, scales8, scales4, rows, row_scales; group: of activations, 0 for the whole token.
    """

    def __init__(self, weight: list[Tensor], scales: Scales, rotate: bool, group: int) -> None:
        self.weight, self.scales, self.rotate, self.group = weight, scales, rotate, group
        self.plans: dict[tuple[int, torch.dtype, int], Plan] = {}

    def __call__(self, x: Tensor, bias: Tensor | None, channels: int) -> Tensor | None:
        """x [T, K] -> y [T, channels]; None where another kernel's turn it is, or torch traces the call."""
        where = (x.device.index, self.scales, x.shape[0])
        if not hopper.takes(*where) or skinny.takes(*where, channels, self.weight[1].shape[1]):
            return None
        if not untraced(x):
            return None
        if x.stride(1) != 1 or x.data_ptr() % 16:
            return None
        bias = None if bias is None else bias.to(x.dtype)
        with torch.cuda.device(x.device):
            if plan := self.plans.get((x.shape[0], x.dtype, x.stride(0))):
                return plan.run(x, bias, channels)
            return self._first(x, bias, channels)

    def _first(self, x: Tensor, bias: Tensor | None, channels: int) -> Tensor:
        y, buffers = (
            x.new_empty((x.shape[0], channels)),
            quantizing.outputs(x, self.group, True, self.scales.unsigned),
        )
        tile = hopper.best(buffers[0], self.weight, self.scales)
        with recorded() as launches:
            quantizing.quantize_into(x, self.rotate, self.group, *buffers)
            partials = hopper.gemm_into(y, *buffers, self.weight, bias, self.scales, self.group, tile)
        if len(self.plans) == MOST_PLANS:
            self.plans.pop(next(iter(self.plans)))
        self.plans[x.shape[0], x.dtype, x.stride(0)] = Plan.of(launches, (*buffers, partials))
        return y


def _copy(arguments: ctypes.Structure) -> ctypes.Structure:
    """Another thread may be between filling in its own and launching."""
    return type(arguments).from_buffer_copy(arguments)
