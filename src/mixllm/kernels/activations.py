"""A8: int8 activations made at run time, the definition that every backend meets bit for bit."""

from __future__ import annotations

import torch
from torch import Tensor

from mixllm.config import Format
from mixllm.rotation import rotate

TOP = 127.0
# A group whose scale would be subnormal counts as a group of zeros, so that flush-to-zero hardware agrees.
LEAST_SCALE = 2.0**-126


def quantize_activations(x: Tensor, format: Format) -> tuple[Tensor, Tensor]:
    """x [T, K] -> codes [T, K], whole numbers -127..127 in float32, and scales float32 [T, A].

    A = ceil(K / activation_group). Symmetric, round half to even: s = max|x| / 127, q = round(x / s).
    A group of zeros has s = 1. A group that holds a NaN or an infinity has s = NaN and q = 0, so that
    the token's outputs are NaN and the other tokens stay exact.
    """
    x = rotate(x) if format.rotation == "hadamard" else x.float()
    k, width = x.shape[1], max(1, format.activation_width(x.shape[1]))
    groups = torch.nn.functional.pad(x, (0, -k % width)).unflatten(1, (-1, width))
    peak = groups.abs().amax(dim=2)
    # On a GPU torch multiplies by the inverse of a plain number, which can round otherwise.
    ratio = peak / torch.full_like(peak, TOP)
    finite = torch.isfinite(ratio)
    normal = finite & (ratio >= LEAST_SCALE)
    scale = torch.where(normal, ratio, 1.0)
    # No more than 127: a scale is normal, so that the largest ratio is 127 but for its last bit.
    codes = (groups / scale[:, :, None]).round()
    codes = torch.where(normal[:, :, None], codes, 0.0).flatten(1)[:, :k]
    return codes, torch.where(finite, scale, torch.nan)


def fake_quantize(x: Tensor, format: Format) -> Tensor:
    """What int8 makes of x [..., K], in x's dtype; in the rotated basis if the format rotates."""
    codes, scales = quantize_activations(rows_of(x), format)
    width = format.activation_width(x.shape[-1])
    spread = torch.repeat_interleave(scales, width, dim=1)[:, : x.shape[-1]]
    return (codes * spread).to(x.dtype).reshape(x.shape)


def rows_of(x: Tensor) -> Tensor:
    """[..., K] -> [T, K], for any number of leading dimensions and T = 0 too."""
    return x.reshape(x.shape[:-1].numel(), x.shape[-1])
