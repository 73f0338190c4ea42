"""Codes that can be learned: of each weight a place, a real number, whose nearest whole number is its code.

A place starts where the float weight lies in its code's cell, as AutoRound's do (arXiv 2309.05516), and the
codes are those that GPTQ found: a weight that GPTQ took another code than the nearest for starts near the
border on that side. So weights between two codes change first, each when the gradient has asked long enough.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mixllm.format.rounded import Rounded, spread
from mixllm.rounding.grid import Limits

# From the middle of a cell, whose border is half a code away.
REACH = 0.45


class Cells(nn.Module):
    """place: float32 [N, K], in codes. zeros, multipliers, low, high: float32 [N, G]."""

    zeros: Tensor
    multipliers: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, rounded: Rounded, weight: Tensor) -> None:
        """weight: float [N, K], what was rounded, in the basis of the format."""
        super().__init__()
        k = rounded.shape[1]
        zeros = rounded.zeros.float().expand(rounded.scales.shape)
        given = rounded.multipliers
        multipliers = torch.ones_like(zeros) if given is None else given.float()
        low, high = Limits.of(rounded.bits).codes(zeros, multipliers)
        for name, groups in (("zeros", zeros), ("multipliers", multipliers), ("low", low), ("high", high)):
            self.register_buffer(name, groups)
        codes = rounded.codes.float()
        away = weight.float() / spread(rounded.scales, k) + spread(zeros, k) - codes
        self.place = nn.Parameter(codes + away.clamp(-REACH, REACH))

    def forward(self) -> Tensor:
        """What scales multiply, float32 [N, K]; places get the gradient of their codes."""
        k = self.place.shape[1]
        return (self._snapped() - spread(self.zeros, k)) * spread(self.multipliers, k)

    def codes(self) -> Tensor:
        """int8 [N, K]."""
        return self._snapped().detach().to(torch.int8)

    def _snapped(self) -> Tensor:
        k = self.place.shape[1]
        snapped: Tensor = _Nearest.apply(self.place, spread(self.low, k), spread(self.high, k))  # type: ignore[no-untyped-call]  # torch has no type for it
        return snapped


class _Nearest(torch.autograd.Function):
    """The nearest codes, with a gradient as if they were not rounded (a straight-through estimate)."""

    @staticmethod
    def forward(ctx: Any, place: Tensor, low: Tensor, high: Tensor) -> Tensor:
        return place.round().maximum(low).minimum(high)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return gradients[0], None, None
