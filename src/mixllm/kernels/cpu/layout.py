"""The kernels' order of a weight: blocks of 16 rows, four inputs of each side by side (docs/cpu.md)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mixllm.config import Format
from mixllm.format.mixed import MixedWeight
from mixllm.format.pack import unpack_nibbles
from mixllm.kernels.cpu.library import load

ROWS = 16


@dataclass(frozen=True)
class KernelWeight:
    """Tensors for csrc/weight.h, which has their shapes; an unused one is empty.

    numbers: inputs, outputs, activation width, whether inputs are rotated.
    """

    codes4: Tensor
    codes8: Tensor
    zeros4: Tensor
    factors4: Tensor
    scales4: Tensor
    scales8: Tensor
    row_scales: Tensor
    channels: Tensor
    numbers: tuple[int, int, int, int]

    def tensors(self) -> list[Tensor]:
        return [
            self.codes4, self.codes8, self.zeros4, self.factors4,
            self.scales4, self.scales8, self.row_scales, self.channels,
        ]  # fmt: skip


def to_kernel_order(weight: MixedWeight, format: Format) -> KernelWeight:
    """Beside the result it needs memory for no more than the scales."""
    k, groups = weight.in_features, format.groups(weight.in_features)
    n4, n8 = len(weight.codes4), len(weight.codes8)
    by_row = format.weight_scale != "group"
    padded = -(-k // 8) * 8
    codes4 = torch.empty(-(-n4 // ROWS), padded // 8, ROWS, 4, dtype=torch.uint8)
    codes8 = torch.empty(-(-n8 // ROWS), padded // 4, ROWS, 4, dtype=torch.uint8)
    stored4, stored8 = weight.codes4.contiguous(), weight.codes8.contiguous()
    load().mixllm_pack4(stored4.data_ptr(), n4, k, codes4.data_ptr())
    load().mixllm_pack8(stored8.data_ptr(), n8, k, codes8.data_ptr())
    zeros = unpack_nibbles(weight.zeros4, 1 if format.weight_scale == "row" else groups)
    if weight.multipliers4 is None:
        factors = torch.ones_like(zeros)
    else:
        factors = unpack_nibbles(weight.multipliers4, groups) + 1
    scales4, scales8 = weight.scales4, weight.scales8
    rows = torch.cat((_whole(weight.rows[:n4] + 1), _whole(weight.rows[n4:] + 1))) - 1
    return KernelWeight(
        codes4=codes4,
        codes8=codes8,
        zeros4=_blocks(zeros),
        factors4=_blocks(factors),
        scales4=scales4[:0] if by_row else _blocks(scales4),
        scales8=scales8[:0] if by_row else _blocks(scales8),
        row_scales=torch.cat((_whole(scales4), _whole(scales8))) if by_row else scales4[:0],
        channels=rows,
        numbers=(k, n4 + n8, format.activation_width(k), int(format.rotation == "hadamard")),
    )


def _whole(rows: Tensor) -> Tensor:
    """[n, ...] -> rows of zeros added up to a whole block."""
    return torch.cat((rows, rows.new_zeros(-len(rows) % ROWS, *rows.shape[1:])))


def _blocks(values: Tensor) -> Tensor:
    """[n, G] -> [ceil(n / 16), G, 16]."""
    return _whole(values).reshape(-1, ROWS, values.shape[1]).transpose(1, 2).contiguous()
