"""A rounded linear layer, unpacked: what rounding makes and what packing stores."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from mixllm.config import GROUP_SIZE

# Below the first a float16 is subnormal and its steps are no longer relative; the second is its largest.
LEAST_HALF, MOST_HALF = 2.0**-14, 65504.0
ELEMENTS_AT_ONCE = 2**26
INT8_MIN, INT8_MAX = -128, 127


@dataclass(frozen=True)
class Rounded:
    """N output channels of K inputs, in the layer's own row order, G = ceil(K / 128) groups.

    bits: uint8 [N], the width of each row, one of mixllm.config.WIDTHS.
    codes: int8 [N, K]; -127..127 in 8-bit rows, 0..2^bits - 1 in others.
    zeros: uint8 [N, G]; 0 in 8-bit rows, a code in others; one value a row where the scale is the row's.
    scales: float32 [N, G]; what (code - zero) is multiplied by, already rounded to its stored type.
    row_scales: float32 [N] for weight_scale "group_int" and "row", else None.
    multipliers: uint8 [N, G], 1..16, scales = row_scales * multipliers, for "group_int", else None
        (1 in 8-bit rows).
    """

    bits: Tensor
    codes: Tensor
    zeros: Tensor
    scales: Tensor
    row_scales: Tensor | None = None
    multipliers: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        return self.codes.shape[0], self.codes.shape[1]

    def rows(self, which: Tensor) -> Self:
        """Some of the rows; which: int64 [n]."""
        some: dict[str, Any] = {name: None if t is None else t[which] for name, t in vars(self).items()}
        return type(self)(**some)

    def between(self, start: int, stop: int) -> Self:
        """The rows start .. stop - 1, not copied."""
        some: dict[str, Any] = {name: None if t is None else t[start:stop] for name, t in vars(self).items()}
        return type(self)(**some)

    def to(self, device: torch.device) -> Self:
        moved: dict[str, Any] = {name: None if t is None else t.to(device) for name, t in vars(self).items()}
        return type(self)(**moved)

    def dequantize(self) -> Tensor:
        """(code - zero) * scale, float32 [N, K]; in the rotated basis if the format rotates."""
        k = self.codes.shape[1]
        zeros, scales = (spread(t, k) for t in (self.zeros, self.scales))
        return (self.codes.float() - zeros.float()) * scales

    def widened(self) -> Rounded:
        """The same weights in rows of 4 and 8 bits alone, as kernels have them.

        Codes of 3 bits are codes of 4 too. Of a row of 5 or 6, multiplier * (code - zero) is the 8-bit code.
        """
        wide = (self.bits > 4)[:, None]
        k = self.codes.shape[1]
        values = self.codes.to(torch.int16) - spread(self.zeros.to(torch.int16), k)
        scales, multipliers = self.scales, self.multipliers
        if multipliers is not None:
            assert self.row_scales is not None
            values *= spread(multipliers.to(torch.int16), k)
            multipliers = torch.where(wide, 1, multipliers)
            scales = self.row_scales[:, None] * multipliers
        return replace(
            self,
            bits=torch.where(wide[:, 0], 8, 4).to(torch.uint8),
            codes=torch.where(wide, values.to(torch.int8), self.codes),
            zeros=torch.where(wide, 0, self.zeros),
            scales=scales,
            multipliers=multipliers,
        )

    def scaled(self, factors: Tensor) -> Rounded:
        """The same integers with each row's scale multiplied: factors float32 [N], above 0.

        Group scales that were halves are rounded to halves again.
        """
        by_row = factors[:, None].to(self.scales.device)
        if self.row_scales is None:
            exact = self.scales * by_row
            halves = exact.clamp(LEAST_HALF, MOST_HALF).half().float()
            scales = torch.where(self.scales.half().float() == self.scales, halves, exact)
            return replace(self, scales=scales)
        rows = self.row_scales[:, None] * by_row
        scales = rows.expand_as(self.scales) if self.multipliers is None else rows * self.multipliers
        return replace(self, scales=scales.contiguous(), row_scales=rows[:, 0])


def least_value(width: int) -> int:
    """What multiplier * (code - zero) goes down to: the least int8, but rows of more than 4 bits run as 8-bit
    rows, whose codes are never -128."""
    return INT8_MIN if width <= 4 else -INT8_MAX


def spread(per_group: Tensor, k: int) -> Tensor:
    """Repeat [..., G] values over the inputs of their groups: [..., K]."""
    return torch.repeat_interleave(per_group, GROUP_SIZE, dim=-1)[..., :k]


def rows_at_once(k: int) -> int:
    """Rows of K inputs that are worked on together, so that a float32 copy of them is 256 MiB at most."""
    return max(1, ELEMENTS_AT_ONCE // k)


def join_rows(parts: list[Rounded]) -> Rounded:
    """The layer whose rows are those of the parts, in order."""
    joined: dict[str, Any] = {
        name: None if first is None else torch.cat([vars(part)[name] for part in parts])
        for name, first in vars(parts[0]).items()
    }
    return Rounded(**joined)
