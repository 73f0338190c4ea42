"""What csrc/hopper.cu's sums have too much where groups have float scales and a token has one; made at load.

Its operands are unsigned: x + 128, and of a weight q (4 bit) or q + 128 (8 bit). So a group's sum is 128 W
above what it would be with x, W the sum of the group's unsigned weights; over all groups a constant of a row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mixllm.config import GROUP_SIZE
from mixllm.kernels.cuda import layout
from mixllm.kernels.cuda.layout import TILE, KernelWeight, tiles_at_once


def excess(weight: KernelWeight) -> Tensor:
    """float32 [16 R], of rows in tiles of 16, 8-bit ones first (R of both): the sum over groups of 128 W s,
    where of every other group unsigned weights are 255 (4 bit: 15) less themselves and s is negative."""
    parts = [weight.scales8.new_empty(0, dtype=torch.float32)]
    for stored, scales, most in (
        (weight.codes8, weight.scales8, 255),
        (weight.codes4, weight.scales4[..., :-TILE], 15),
    ):
        kind = torch.float16 if scales.shape[2] == 2 * TILE else torch.float32
        step = tiles_at_once(weight.in_features)
        for start in range(0, len(stored), step):
            tiles = slice(start, start + step)
            if most == 15:
                codes = layout.in_rows4(stored[tiles]).int()
            else:
                codes = layout.in_rows8(stored[tiles]).int() + 128
            sums = codes.view(len(codes), -1, GROUP_SIZE).sum(2)
            odd = torch.arange(sums.shape[1], device=sums.device) % 2 == 1
            sums = torch.where(odd, sums - most * GROUP_SIZE, sums)
            by_group = layout.by_row(scales[tiles], kind)
            parts.append((sums.double() * by_group.double()).sum(1).mul(GROUP_SIZE).float())
    return torch.cat(parts)
