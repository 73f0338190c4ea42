"""The int8 activations of layers that are tuned, made once for all layers that read one input."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from mixllm.config import Format
from mixllm.kernels.activations import LEAST_SCALE, TOP
from mixllm.rotation import BLOCK, rotate


class Seen:
    """x [..., K] -> what int8 leaves of it (rotated if the format rotates), in x's dtype.

    A layer that reads the tensor that was read last gets the same result; forget() lets go of both.
    """

    def __init__(self, format: Format) -> None:
        self.format = format
        self._last: tuple[Tensor, Tensor] | None = None

    def __call__(self, x: Tensor) -> Tensor:
        if self._last is None or self._last[0] is not x:
            self._last = x, _Straight.apply(x, self.format)  # type: ignore[no-untyped-call]  # torch has no type for it
        return self._last[1]

    def forget(self) -> None:
        self._last = None


class _Straight(torch.autograd.Function):
    """int8 activations whose rounding the gradient does not see (a straight-through estimate)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, format: Format) -> Tensor:
        ctx.rotated = format.rotation == "hadamard"
        turned = _rotate(x.float()) if ctx.rotated else x.float()
        return _nearest(turned, format.activation_width(x.shape[-1])).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        return (_rotate(gradient) if ctx.rotated else gradient), None


def _nearest(x: Tensor, width: int) -> Tensor:
    """mixllm.kernels.activations.fake_quantize of finite, rotated x [..., K] in fewer steps."""
    k = x.shape[-1]
    groups = torch.nn.functional.pad(x, (0, -k % width)).unflatten(-1, (-1, width))
    scale = groups.abs().amax(dim=-1, keepdim=True).div_(TOP).clamp_(min=LEAST_SCALE)
    seen: Tensor = (groups / scale).round_().mul_(scale).flatten(-2)[..., :k]
    return seen


@cache
def _hadamard(size: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """What rotate multiplies blocks of this size by; made once, in many steps."""
    return rotate(torch.eye(size, device=device)).to(dtype)


def _rotate(x: Tensor) -> Tensor:
    """mixllm.rotation.rotate by matrix products: one launch for twenty, sums in another order."""
    whole = x.shape[-1] // BLOCK * BLOCK
    parts = []
    for part, size in ((x[..., :whole], BLOCK), (x[..., whole:], x.shape[-1] - whole)):
        if size and part.shape[-1]:
            block = size & -size
            matrix = _hadamard(block, x.device, x.dtype)
            parts.append((part.unflatten(-1, (-1, block)) @ matrix).flatten(-2))
    return torch.cat(parts, dim=-1)
