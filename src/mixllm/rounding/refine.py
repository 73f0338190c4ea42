"""Coordinate descent on GPTQ's codes (QuantEase, arXiv 2309.01885), grids searched along with them.

With e = w^q - w, a row's output error is e H e'. GPTQ rounds each weight once, knowing nothing of those
after it. Here every weight is rounded again with all others as they are: the best value of weight i is
w_i - sum over j != i of e_j H_ji / H_ii, and the nearest code to it is the best one, so that the error can
only fall. A group is swept once for each grid near its own (scale or zero point a step up or down), and
each row keeps the best. Row scales are fitted by least squares after each sweep.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mixllm.config import GROUP_SIZE
from mixllm.rounding.columns import round_columns
from mixllm.rounding.grid import Grid, Grids, pick, stack
from mixllm.rounding.hessian import Factor


def refine(
    weight: Tensor, codes: Tensor, chosen: list[Grid], grids: Grids, factor: Factor, sweeps: int
) -> tuple[Tensor, list[Grid]]:
    """Better codes float32 [N, K] and grids of weight [N, K], by so many sweeps over its groups.

    codes, chosen: as GPTQ left them, in the layer's own order.
    """
    codes, chosen = codes.clone(), list(chosen)
    for _ in range(sweeps):
        error = _values(codes, chosen) - weight
        for g, columns in zip(factor.numbers, factor.groups, strict=True):
            local = factor.hessian[columns][:, columns]
            # What the errors of the other groups ask of this one.
            outside = error @ factor.hessian[:, columns] - error[:, columns] @ local
            local.diagonal().add_(factor.added)
            choices = [chosen[g], *grids.near(chosen[g])]
            best, codes[:, columns], error[:, columns] = _swept(
                weight[:, columns], error[:, columns], local, outside, stack(choices)
            )
            chosen[g] = pick(choices, best)
        if grids.kind != "group":
            chosen = _fit_rows(weight, codes, chosen, factor)
    return codes, chosen


def _swept(
    weight: Tensor, error: Tensor, local: Tensor, outside: Tensor, grid: Grid
) -> tuple[Tensor, Tensor, Tensor]:
    """One sweep over a group's columns in each of C grids of its N rows, stacked to [C N, 1].

    weight, error: [N, L]; local: [L, L], the group's part of H; outside: [N, L].
    Returns the best grid's number int64 [N], and codes and errors [N, L] in it.
    """
    diagonal = local.diagonal()
    upper = torch.eye(len(local), device=local.device) - local.triu(1) / diagonal
    target = weight - (outside + error @ local.tril(-1)) / diagonal
    count, n = len(grid.scale) // len(weight), len(weight)
    codes, negative = round_columns(target.repeat(count, 1), grid, upper, weight.repeat(count, 1))
    cost = (negative * (negative @ local - 2 * outside.repeat(count, 1))).sum(dim=1)
    best = cost.view(count, n).argmin(dim=0)
    row = best * n + torch.arange(n, device=best.device)
    return best, codes[row], -negative[row]


def _fit_rows(weight: Tensor, codes: Tensor, chosen: list[Grid], factor: Factor) -> list[Grid]:
    """The same grids with each row's scale changed by the factor that is best for its codes.

    A row so small or large that its sums leave float32's range keeps its scale.
    """
    values = _values(codes, chosen)
    product = values @ factor.hessian + factor.added * values
    size, along = (product * values).sum(1, keepdim=True), (product * weight).sum(1, keepdim=True)
    best = along / size
    by = torch.where((size > 0) & (best > 0) & best.isfinite(), best, 1.0)
    return [Grid(grid.scale * by, grid.zero, grid.low, grid.high, grid.multiplier) for grid in chosen]


def _values(codes: Tensor, chosen: list[Grid]) -> Tensor:
    parts = codes.split(GROUP_SIZE, dim=1)
    return torch.cat([grid.value(part) for grid, part in zip(chosen, parts, strict=True)], dim=1)
