"""The oracle: the linear layer of docs/format.md in plain torch, exact in its integers on any device.

    y[t, n] = sum over groups g of  s_a[t, g] s_w[n, g] * (sum over k in g of q_a[t, k] (q_w[n, k] - z[n, g]))

Integer sums are float32 matrix products over few enough inputs that no partial sum reaches 2^24.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mixllm.config import GROUP_SIZE, Format
from mixllm.format.mixed import MixedWeight
from mixllm.format.pack import unpack
from mixllm.format.rounded import spread
from mixllm.kernels.activations import quantize_activations, rows_of
from mixllm.kernels.precision import float32_products

# 127 * 128 * 1024 < 2^24: products of codes summed in float32 over this many inputs are exact.
EXACT_INPUTS = 1024


class ReferenceLinear:
    """A weight made ready: one int8 a weight in the original row order, and its float scales."""

    def __init__(self, weight: MixedWeight, format: Format) -> None:
        rounded = unpack(weight, format)
        self.format = format
        k = weight.in_features
        values = rounded.codes.to(torch.int16) - spread(rounded.zeros.to(torch.int16), k)
        if rounded.multipliers is not None:
            values *= spread(rounded.multipliers.to(torch.int16), k)
        self.values = values.to(torch.int8)
        self.group_scales = rounded.scales if rounded.row_scales is None else None
        self.row_scales = rounded.row_scales

    def __call__(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x [..., K] float -> [..., N] in x's dtype."""
        codes, scales = quantize_activations(rows_of(x), self.format)
        # Whatever the user chose: sums of codes are whole numbers of up to 24 bits.
        with float32_products("highest"):
            y = self._by_group(codes, scales) if self.row_scales is None else self._by_row(codes, scales)
        if bias is not None:
            y += bias.float()
        return y.to(x.dtype).reshape(*x.shape[:-1], len(self.values))

    def _by_group(self, codes: Tensor, scales: Tensor) -> Tensor:
        assert self.group_scales is not None
        y = codes.new_zeros(len(codes), len(self.values))
        for g, (q_a, q_w) in enumerate(
            zip(_cut(codes, GROUP_SIZE), _cut(self.values, GROUP_SIZE), strict=True)
        ):
            s_a = scales[:, g * GROUP_SIZE // self.format.activation_width(codes.shape[1])]
            y += (q_a @ q_w.float().T) * self.group_scales[:, g] * s_a[:, None]
        return y

    def _by_row(self, codes: Tensor, scales: Tensor) -> Tensor:
        assert self.row_scales is not None
        y = codes.new_zeros(len(codes), len(self.values))
        width = self.format.activation_width(codes.shape[1])
        for a, (q_a, q_w) in enumerate(zip(_cut(codes, width), _cut(self.values, width), strict=True)):
            y += integer_products(q_a, q_w).float() * scales[:, a, None]
        return y * self.row_scales


def integer_products(q_a: Tensor, q_w: Tensor) -> Tensor:
    """q_a [T, K] and q_w [N, K], whole numbers of int8's range -> their exact products int32 [T, N]."""
    total = torch.zeros(len(q_a), len(q_w), dtype=torch.int32, device=q_a.device)
    for a, w in zip(_cut(q_a, EXACT_INPUTS), _cut(q_w, EXACT_INPUTS), strict=True):
        total += (a.float() @ w.float().T).to(torch.int32)
    return total


def _cut(x: Tensor, width: int) -> tuple[Tensor, ...]:
    parts: tuple[Tensor, ...] = x.split(max(1, width), dim=1)
    return parts
