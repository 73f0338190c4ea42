"""Coordinate descent on GPTQ's codes (QuantEase, arXiv 2309.01885), grids searched along with them.

With e = w^q - w, a row's output error is e H e'. GPTQ rounds each weight once, knowing nothing of those
after it. Here every weight is rounded again with all others as they are: the best value of weight i is
w_i - sum over j != i of e_j H_ji / H_ii, and the nearest code to it is the best one, so that the error can
only fall. A group is swept once for each grid near its own (scale or zero point a step up or down), and
each row keeps the best. Row scales are fitted by least squares after each sweep.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mixllm.config import GROUP_SIZE
from mixllm.rounding.columns import round_columns
from mixllm.rounding.grid import Grid, Grids
from mixllm.rounding.hessian import Factor


def refine(
    weight: Tensor, codes: Tensor, chosen: list[Grid], grids: Grids, factor: Factor, sweeps: int
) -> tuple[Tensor, list[Grid]]:
    """Better codes float32 [N, K] and grids of weight [N, K], by so many sweeps over its groups.

    codes, chosen: as GPTQ left them, in the layer's own order.
    """
    codes, chosen = codes.clone(), list(chosen)
    searched, fitted = grids.kind != "row", grids.kind != "group"
    for _ in range(sweeps):
        error = _values(codes, chosen) - weight
        for columns in factor.groups:
            g = int(columns.min()) // GROUP_SIZE
            local = factor.hessian[columns][:, columns]
            # What the errors of the other groups ask of this one.
            outside = error @ factor.hessian[:, columns] - error[:, columns] @ local
            group = _Group(weight[:, columns], error[:, columns], local, outside)
            best, grid = group.swept(chosen[g]), chosen[g]
            for other in grids.near(chosen[g]) if searched else ():
                found = group.swept(other)
                better = found.cost < best.cost
                best, grid = found.where(better, best), other.where(better, grid)
            codes[:, columns], error[:, columns] = best.codes, best.error
            chosen[g] = grid
        if fitted:
            chosen = _fit_rows(weight, codes, chosen, factor.hessian)
    return codes, chosen


@dataclass(frozen=True)
class _Swept:
    """Codes and errors of a group [N, L], and what they add to each row's output error [N, 1]."""

    codes: Tensor
    error: Tensor
    cost: Tensor

    def where(self, better: Tensor, other: _Swept) -> _Swept:
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return _Swept(*(torch.where(better, mine, theirs) for mine, theirs in pairs))


class _Group:
    """One group's part of the problem: weight, error [N, L]; local [L, L], its part of H; outside [N, L]."""

    def __init__(self, weight: Tensor, error: Tensor, local: Tensor, outside: Tensor) -> None:
        self.weight, self.local, self.outside = weight, local, outside
        diagonal = local.diagonal()
        self.upper = -local.triu(1) / diagonal + torch.eye(len(local), device=local.device)
        self.target = weight - (outside + error @ local.tril(-1)) / diagonal

    def swept(self, grid: Grid) -> _Swept:
        """One sweep over the group's columns in this grid."""
        codes, negative = round_columns(self.target, grid, self.upper, self.weight)
        error = -negative
        cost = error * (error @ self.local + 2 * self.outside)
        return _Swept(codes, error, cost.sum(dim=1, keepdim=True))


def _fit_rows(weight: Tensor, codes: Tensor, chosen: list[Grid], hessian: Tensor) -> list[Grid]:
    """The same grids with each row's scale changed by the factor that is best for its codes."""
    values = _values(codes, chosen)
    product = values @ hessian
    size, along = (product * values).sum(1, keepdim=True), (product * weight).sum(1, keepdim=True)
    factor = torch.where((size > 0) & (along > 0), along / size, 1.0)
    return [Grid(grid.scale * factor, grid.zero, grid.low, grid.high, grid.multiplier) for grid in chosen]


def _values(codes: Tensor, chosen: list[Grid]) -> Tensor:
    parts = codes.split(GROUP_SIZE, dim=1)
    return torch.cat([grid.value(part) for grid, part in zip(chosen, parts, strict=True)], dim=1)
