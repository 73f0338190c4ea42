"""The number grids of W4 and W8: which values the rows of a layer may take in one group of inputs.

One formula serves both widths and every kind of weight scale: a row's values are
(code - zero) * scale with integer codes low..high. 4-bit rows are asymmetric (arXiv 2412.14590,
section 3.2), 8-bit rows symmetric (zero = 0, codes -127..127).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from mixllm.config import Format
from mixllm.format.rounded import LEAST_HALF, MOST_HALF

# Integer group scales: |row| <= 119 steps leaves room in an int8 for the zero point's rounding.
ROW_STEPS, MULTIPLIER_MAX = 119, 16
INT8_MIN, INT8_MAX = -128, 127
# A group's float scale is searched in steps of this share of it.
SCALE_STEP = 0.04


@dataclass(frozen=True)
class Grid:
    """The values of N rows in one group; every tensor is float32 [N, 1]."""

    scale: Tensor
    zero: Tensor
    low: Tensor
    high: Tensor
    multiplier: Tensor

    def snap(self, w: Tensor) -> Tensor:
        """The nearest codes of w [N, L], as float32 whole numbers."""
        return ((w / self.scale).round() + self.zero).clamp(self.low, self.high)

    def value(self, codes: Tensor) -> Tensor:
        return (codes - self.zero) * self.scale

    def where(self, better: Tensor, other: Grid) -> Grid:
        """This grid in the rows where better [N, 1] holds, the other elsewhere."""
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Grid(*(torch.where(better, mine, theirs) for mine, theirs in pairs))


class Grids:
    """Makes the grids of one weight, group by group.

    weight: float32 [N, K], already rotated if the format rotates; bits: uint8 [N].
    Row scales ("group_int", "row") are fixed here from the whole weight; shrink then narrows only
    what a group may still choose.
    """

    def __init__(self, weight: Tensor, bits: Tensor, format: Format) -> None:
        self.kind = format.weight_scale
        self.four = (bits == 4)[:, None]
        self.row_scale: Tensor | None = None
        peak = weight.abs().amax(dim=1, keepdim=True)
        if self.kind == "group":
            self.half = fits_half(weight, self.four, format)
        elif self.kind == "group_int":
            self.row_scale = unit_if_zero(peak / torch.where(self.four, ROW_STEPS, INT8_MAX))

    def make(self, w: Tensor, shrink: float = 1.0) -> Grid:
        """The grid of a group's (or, for "row", a whole row's) weights [N, L], its range cut by shrink."""
        low, high = w.amin(dim=1, keepdim=True).clamp(max=0), w.amax(dim=1, keepdim=True).clamp(min=0)
        low, high = low * shrink, high * shrink
        scale = torch.where(self.four, (high - low) / 15, torch.maximum(-low, high) / INT8_MAX)
        multiplier = torch.ones_like(scale)
        if self.kind == "group":
            scale = self._stored(scale)
        elif self.row_scale is not None:
            steps = (scale / self.row_scale).round().clamp(1, MULTIPLIER_MAX)
            multiplier = torch.where(self.four, steps, multiplier)
            scale = self.row_scale * multiplier
        scale = unit_if_zero(scale)
        return self._grid(scale, (-low / scale).round(), multiplier)

    def near(self, grid: Grid) -> Iterator[Grid]:
        """The grids a step from `grid` in scale or zero point (a row without one has `grid` again).

        None for "row", where groups cannot differ.
        """
        if self.kind == "row":
            return
        if self.kind == "group_int":
            for step in (-1, 1):
                other = torch.where(
                    self.four, (grid.multiplier + step).clamp(1, MULTIPLIER_MAX), grid.multiplier
                )
                yield self._grid(grid.scale / grid.multiplier * other, grid.zero, other)
        else:
            for factor in (1 - SCALE_STEP, 1 + SCALE_STEP):
                yield self._grid(self._stored(grid.scale * factor), grid.zero, grid.multiplier)
        for step in (-1, 1):
            yield self._grid(grid.scale, grid.zero + step, grid.multiplier)

    def _grid(self, scale: Tensor, zero: Tensor, multiplier: Tensor) -> Grid:
        zero = torch.where(self.four, zero.clamp(0, 15), 0.0)
        # multiplier * (code - zero) must stay an int8.
        first = torch.where(self.four, (zero + (INT8_MIN / multiplier).ceil()).clamp(min=0), -INT8_MAX)
        last = torch.where(self.four, (zero + (INT8_MAX / multiplier).floor()).clamp(max=15), INT8_MAX)
        return Grid(scale, zero, first, last, multiplier)

    def _stored(self, scale: Tensor) -> Tensor:
        halves = scale.clamp(max=MOST_HALF).half().float()
        # A later group can fall below what the first look at the weight promised: its least normal value.
        halves = torch.where(scale > 0, halves.clamp(min=LEAST_HALF), halves)
        return torch.where(self.half, halves, scale)

    @cached_property
    def by_row(self) -> Tensor:
        """For a kernel, float32 [2, N]: has the row 4 bits; its scale, or whether its scales are halves."""
        own = self.half if self.row_scale is None else self.row_scale
        return torch.stack((self.four[:, 0].float(), own[:, 0].float()))


def stack(grids: list[Grid]) -> Grid:
    """C grids of N rows as one of C N rows."""
    return Grid(*(torch.cat(parts) for parts in zip(*(vars(grid).values() for grid in grids), strict=True)))


def pick(grids: list[Grid], best: Tensor) -> Grid:
    """Of each row the grid with the number best, int64 [N]."""
    fields = zip(*(vars(grid).values() for grid in grids), strict=True)
    return Grid(*(torch.stack(parts).gather(0, best[None, :, None])[0] for parts in fields))


def fits_half(weight: Tensor, four: Tensor, format: Format) -> Tensor:
    """Rows of weight [N, K] whose every group scale is zero or a normal float16: bool [N, 1].

    four: bool [N, 1], rows of 4 bits. A layer with a row that does not fit is stored in float32.
    """
    fits = torch.ones_like(four)
    for group in weight.split(format.group_size, dim=1):
        low, high = group.amin(dim=1, keepdim=True).clamp(max=0), group.amax(dim=1, keepdim=True).clamp(min=0)
        scale = torch.where(four, (high - low) / 15, torch.maximum(-low, high) / INT8_MAX)
        fits &= (scale == 0) | ((scale >= LEAST_HALF) & (scale <= MOST_HALF))
    return fits


def unit_if_zero(scale: Tensor) -> Tensor:
    """A group of zeros has scale 1, so that nothing is divided by zero."""
    return torch.where(scale > 0, scale, 1.0)
