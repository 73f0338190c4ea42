"""The int8 activations of layers that are tuned, made once for all layers that read one input."""

from __future__ import annotations

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
        # Compiled code finds what is alike by itself.
        if torch.compiler.is_compiling():
            return _straight(x, self.format)
        if self._last is None or self._last[0] is not x:
            self._last = x, _straight(x, self.format)
        return self._last[1]

    def prepare(self, k: int, device: torch.device, dtype: torch.dtype) -> None:
        """Make, before code for layers of k inputs is compiled, what it finds made."""
        for _, size in _cut(k) if self.format.rotation == "hadamard" else []:
            for wanted in (torch.float32, dtype):
                _matrix(size, device, wanted)

    def forget(self) -> None:
        self._last = None


def _straight(x: Tensor, format: Format) -> Tensor:
    seen: Tensor = _Straight.apply(x, format)  # type: ignore[no-untyped-call]  # torch has no type for it
    return seen


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


# By size, device and dtype: what rotate multiplies blocks by. Made once, in many steps.
_matrices: dict[tuple[int, torch.device, torch.dtype], Tensor] = {}


def _matrix(size: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    key = size, device, dtype
    if key not in _matrices:
        _matrices[key] = rotate(torch.eye(size, device=device)).to(dtype)
    return _matrices[key]


def _cut(k: int) -> list[tuple[slice, int]]:
    """The parts of k inputs that are rotated in blocks of one size, and that size."""
    whole, rest = k // BLOCK * BLOCK, k % BLOCK
    parts = [(slice(0, whole), BLOCK), (slice(whole, k), rest & -rest)]
    return [(part, size) for part, size in parts if part.start < part.stop]


def _rotate(x: Tensor) -> Tensor:
    """mixllm.rotation.rotate by matrix products: one launch for twenty, sums in another order."""
    parts = []
    for part, size in _cut(x.shape[-1]):
        matrix = _matrix(size, x.device, x.dtype)
        # Rounding to int8 is of what float32 gives.
        with torch.autocast(x.device.type, enabled=False):
            parts.append((x[..., part].unflatten(-1, (-1, size)) @ matrix).flatten(-2))
    return torch.cat(parts, dim=-1)
