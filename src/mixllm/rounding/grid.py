"""The number grids of rows of 3 to 8 bits: which values a row may take in one group of inputs.

One formula serves all widths and every kind of weight scale: a row's values are
(code - zero) * scale with integer codes low..high. Rows of less than 8 bits are asymmetric (arXiv
2412.14590, section 3.2, for 4), 8-bit rows symmetric (zero = 0, codes -127..127).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from mixllm.config import Format
from mixllm.format.rounded import INT8_MAX, INT8_MIN, LEAST_HALF, MOST_HALF

MULTIPLIER_MAX = 16
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
        self.limits = Limits.of(bits)
        self.row_scale: Tensor | None = None
        peak = weight.abs().amax(dim=1, keepdim=True)
        if self.kind == "group":
            self.half = fits_half(weight, self.limits, format)
        elif self.kind == "group_int":
            self.row_scale = unit_if_zero(peak / self.limits.steps)

    def make(self, w: Tensor, shrink: float = 1.0) -> Grid:
        """The grid of a group's (or, for "row", a whole row's) weights [N, L], its range cut by shrink."""
        low, high = w.amin(dim=1, keepdim=True).clamp(max=0), w.amax(dim=1, keepdim=True).clamp(min=0)
        low, high = low * shrink, high * shrink
        scale = self.limits.scale(low, high)
        multiplier = torch.ones_like(scale)
        if self.kind == "group":
            scale = self._stored(scale)
        elif self.row_scale is not None:
            steps = scale / self.row_scale
            # Few multipliers are far apart: the next lower one would cut off more than a search should.
            multiplier = self._multiplier(torch.where(self.limits.wide, steps.ceil(), steps.round()))
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
                other = self._multiplier(grid.multiplier + step)
                yield self._grid(grid.scale / grid.multiplier * other, grid.zero, other)
        else:
            for factor in (1 - SCALE_STEP, 1 + SCALE_STEP):
                yield self._grid(self._stored(grid.scale * factor), grid.zero, grid.multiplier)
        for step in (-1, 1):
            yield self._grid(grid.scale, grid.zero + step, grid.multiplier)

    def _multiplier(self, wanted: Tensor) -> Tensor:
        return wanted.clamp(min=1).minimum(self.limits.multiplier)

    def _grid(self, scale: Tensor, zero: Tensor, multiplier: Tensor) -> Grid:
        limits = self.limits
        zero = torch.where(limits.free, zero.clamp(min=0).minimum(limits.top), 0.0)
        return Grid(scale, zero, *limits.codes(zero, multiplier), multiplier)

    def _stored(self, scale: Tensor) -> Tensor:
        halves = scale.clamp(max=MOST_HALF).half().float()
        # A later group can fall below what the first look at the weight promised: its least normal value.
        halves = torch.where(scale > 0, halves.clamp(min=LEAST_HALF), halves)
        return torch.where(self.half, halves, scale)

    @cached_property
    def by_row(self) -> Tensor:
        """For a kernel, float32 [3, N]: the row's top and most multiplier (see Limits); its scale, or
        whether its scales are halves."""
        own = self.half if self.row_scale is None else self.row_scale
        return torch.stack((self.limits.top[:, 0], self.limits.multiplier[:, 0], own[:, 0].float()))


@dataclass(frozen=True)
class Limits:
    """What the rows of a weight may use by their widths; every tensor is float32 [N, 1], free and wide bool.

    free: whether the row has zero points, as all have that are narrower than 8 bits. wide: more than 4 bits.
    top: the largest code, 2^bits - 1, or 127. least: see mixllm.format.rounded.least_value.
    multiplier: the largest multiplier of integer group scales, and steps: what |row| is then divided by. So
    multiplier * top spans the row twice, less a step that leaves room for the zero point's rounding: 16 and
    119 for 4 bits.
    """

    free: Tensor
    wide: Tensor
    top: Tensor
    least: Tensor
    multiplier: Tensor
    steps: Tensor

    @classmethod
    def of(cls, bits: Tensor) -> Limits:
        """bits: uint8 [N]."""
        width = bits[:, None].float()
        free, wide = width < 8, width > 4
        top = torch.where(free, torch.exp2(width) - 1, INT8_MAX)
        multiplier = torch.exp2(8 - width).clamp(max=MULTIPLIER_MAX)
        steps = torch.where(free, (multiplier * top / 2).floor() - 1, INT8_MAX)
        return cls(free, wide, top, torch.where(wide, -INT8_MAX, INT8_MIN), multiplier, steps)

    def codes(self, zero: Tensor, multiplier: Tensor) -> tuple[Tensor, Tensor]:
        """The least and the largest code of groups, float32 [N, G] as zero and multiplier are.

        multiplier * (code - zero) must stay an int8, as the kernels have it.
        """
        first = (zero + (self.least / multiplier).ceil()).clamp(min=0)
        last = (zero + (INT8_MAX / multiplier).floor()).minimum(self.top)
        return torch.where(self.free, first, -self.top), last

    def scale(self, low: Tensor, high: Tensor) -> Tensor:
        """The step that spans low <= 0 to high >= 0, float32 [N, 1] each."""
        return torch.where(self.free, high - low, torch.maximum(-low, high)) / self.top


def stack(grids: list[Grid]) -> Grid:
    """C grids of N rows as one of C N rows."""
    return Grid(*(torch.cat(parts) for parts in zip(*(vars(grid).values() for grid in grids), strict=True)))


def pick(grids: list[Grid], best: Tensor) -> Grid:
    """Of each row the grid with the number best, int64 [N]."""
    fields = zip(*(vars(grid).values() for grid in grids), strict=True)
    return Grid(*(torch.stack(parts).gather(0, best[None, :, None])[0] for parts in fields))


def fits_half(weight: Tensor, limits: Limits, format: Format) -> Tensor:
    """Rows of weight [N, K] whose every group scale is zero or a normal float16: bool [N, 1].

    A layer with a row that does not fit is stored in float32.
    """
    fits = torch.ones_like(limits.free)
    for group in weight.split(format.group_size, dim=1):
        low, high = group.amin(dim=1, keepdim=True).clamp(max=0), group.amax(dim=1, keepdim=True).clamp(min=0)
        scale = limits.scale(low, high)
        fits &= (scale == 0) | ((scale >= LEAST_HALF) & (scale <= MOST_HALF))
    return fits


def unit_if_zero(scale: Tensor) -> Tensor:
    """A group of zeros has scale 1, so that nothing is divided by zero."""
    return torch.where(scale > 0, scale, 1.0)
