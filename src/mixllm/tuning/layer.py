"""A quantized linear layer whose row scales can be learned."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mixllm.config import Format
from mixllm.format.rounded import Rounded, spread
from mixllm.kernels.activations import fake_quantize
from mixllm.rotation import BLOCK, rotate


class TunedLinear(nn.Module):
    """y = (x as int8 leaves it) W' * exp(gain) + bias, differentiable by x and by gain.

    gain: float32 [N], 0 at first: the logarithm of the factor on each row's scale. The integers that
    scales multiply are kept as int8, a byte a weight, and spread out at each use.
    """

    def __init__(self, rounded: Rounded, format: Format, bias: Tensor | None) -> None:
        super().__init__()
        self.format, self.bias = format, bias
        k = rounded.shape[1]
        values = rounded.codes.to(torch.int16) - spread(rounded.zeros.to(torch.int16), k)
        if rounded.multipliers is not None:
            values *= spread(rounded.multipliers.to(torch.int16), k)
        self.values = values.to(torch.int8)
        self.scales = rounded.scales if rounded.row_scales is None else rounded.row_scales[:, None]
        self.gain = nn.Parameter(torch.zeros(len(values), device=values.device))

    def forward(self, x: Tensor) -> Tensor:
        """x [..., K] -> [..., N] in x's dtype."""
        scales = spread(self.scales, self.values.shape[1]) if self.scales.shape[1] > 1 else self.scales
        weight = (self.values.float() * scales).to(x.dtype)
        seen: Tensor = _Straight.apply(x, self.format)  # type: ignore[no-untyped-call]  # torch has no type for it
        y = nn.functional.linear(seen, weight) * self.gain.exp()
        return (y if self.bias is None else y + self.bias).to(x.dtype)


class _Straight(torch.autograd.Function):
    """int8 activations whose rounding the gradient does not see (a straight-through estimate)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, format: Format) -> Tensor:
        ctx.rotated = format.rotation == "hadamard"
        if not ctx.rotated:
            return fake_quantize(x, format)
        plain = format.model_copy(update={"rotation": "none"})
        return fake_quantize(_rotate(x.float()), plain).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        return (_rotate(gradient) if ctx.rotated else gradient), None


def _rotate(x: Tensor) -> Tensor:
    """mixllm.rotation.rotate by matrix products: one launch for twenty, sums in another order."""
    whole = x.shape[-1] // BLOCK * BLOCK
    parts = []
    for part, size in ((x[..., :whole], BLOCK), (x[..., whole:], x.shape[-1] - whole)):
        if size and part.shape[-1]:
            block = size & -size
            matrix = rotate(torch.eye(block, device=x.device)).to(x.dtype)
            parts.append((part.unflatten(-1, (-1, block)) @ matrix).flatten(-2))
    return torch.cat(parts, dim=-1)
