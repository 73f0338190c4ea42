"""Codes that can be learned: of each weight a place, a real number, whose nearest whole number is its code.

A place starts in the cell of the code that rounding chose, where the layer's own error asks for it with all
other codes as they are: with e = w^q - w and H of the layer's inputs that is (e H)_i / H_ii below the code's
value, the step that coordinate descent would take (see mixllm.rounding.refine). So codes change first where
that costs the layer least. (AutoRound, arXiv 2309.05516, starts where the float weight lies; codes that
GPTQ chose for each other would then be at the border of their cells from the start.)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mixllm.format.rounded import Rounded, spread
from mixllm.rounding.grid import Limits

# From the middle of a cell, whose border is half a code away.
REACH = 0.45
# Of the mean of H's diagonal, added to it.
DAMPING = 0.01


class Cells(nn.Module):
    """place: float32 [N, K], in codes. zeros, multipliers, low, high: float32 [N, G]."""

    zeros: Tensor
    multipliers: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, rounded: Rounded, weight: Tensor, hessian: Tensor | None = None) -> None:
        """weight: float [N, K], what was rounded, and hessian: [K, K] of its inputs, in the basis of the
        format; without one each weight's error counts for itself."""
        super().__init__()
        k = rounded.shape[1]
        zeros = rounded.zeros.float().expand(rounded.scales.shape)
        given = rounded.multipliers
        multipliers = torch.ones_like(zeros) if given is None else given.float()
        low, high = Limits.of(rounded.bits).codes(zeros, multipliers)
        for name, groups in (("zeros", zeros), ("multipliers", multipliers), ("low", low), ("high", high)):
            self.register_buffer(name, groups)
        error = rounded.dequantize() - weight.float()
        if hessian is not None:
            diagonal = hessian.diagonal()
            # Inputs that are all zero have no say: then, too, each error counts for itself.
            added = (DAMPING * diagonal.mean()).clamp(min=1e-20)
            error = (error @ hessian + added * error) / (diagonal + added)
        away = -error / spread(rounded.scales, k)
        self.place = nn.Parameter(rounded.codes.float() + away.clamp(-REACH, REACH))

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
