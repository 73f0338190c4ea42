"""Which output channel gets which width: one budget for the whole model.

Section 3 of arXiv 2412.14590 ranks all channels of all layers by the loss that 4 bits cost them and gives
8 bits to the top p percent (the rule "channels"). Rows differ in length, so the rule "bits" asks what that
loss buys: every channel has a list of (bits, predicted loss); the steps along the lower convex hull of that
list are taken in order of loss avoided per extra bit, over all channels, until the budget is spent.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import floor

import torch
from torch import Tensor

from mixllm.config import Scope
from mixllm.errors import MixllmError
from mixllm.plan.module import ModulePlan
from mixllm.plan.plan import Plan
from mixllm.plan.salience import Salience


def choose(
    salience: Salience,
    *,
    bits: float | None = None,
    channels: float | None = None,
    scope: Scope = "global",
    seed: int = 0,
) -> Plan:
    """Spend a budget on the channels of a model.

    bits: payload bits a quantized weight, over the whole model; channels: percent of output channels that
    get the widest width, the others the narrowest. Exactly one of them is given. The budget is never
    exceeded, and what is left of it is less than the next row in order would cost.
    scope: "global", channels of all layers compete; "local", each layer spends the same share of the budget
    (what it leaves, less than a row, goes to the next layer); "random", rows drawn with `seed`.
    Raises MixllmError for a budget outside the widths and for losses that are not finite.
    """
    if (bits is None) == (channels is None):
        raise MixllmError("plan: give either bits or channels as the budget")
    rows = _Rows.of(salience)
    if bits is not None:
        steps, shares = _by_bits(rows, bits, scope, seed)
    else:
        assert channels is not None
        steps, shares = _by_channels(rows, channels, scope, seed)
    taken = (
        _spend_by_layer(steps, shares, rows) if scope == "local" else _spend(steps, sum(shares, Fraction()))
    )
    widths = torch.full_like(rows.layer, rows.widths[0]).scatter_reduce(0, taken.row, taken.width, "amax")
    parts = torch.split(widths.to(torch.uint8), rows.counts)
    return Plan(
        modules={
            name: ModulePlan(module.in_features, part)
            for (name, module), part in zip(salience.modules.items(), parts, strict=True)
        },
        widths=tuple(rows.widths),
        rule="bits" if channels is None else "channels",
        budget=float(next(budget for budget in (bits, channels) if budget is not None)),
        scope=scope,
        seed=seed,
        score=salience.score,
        error=salience.error,
        format=salience.format,
        other_bytes=salience.other_bytes,
    )


@dataclass(frozen=True)
class _Rows:
    """All R output channels of a model in one list, layer by layer.

    layer, length: int64 [R], the layer's number and the row's K; loss: float64 [widths, R].
    counts, weights: by layer, its rows N and its weights N K.
    """

    widths: list[int]
    layer: Tensor
    length: Tensor
    loss: Tensor
    counts: list[int]
    weights: list[int]

    @classmethod
    def of(cls, salience: Salience) -> _Rows:
        widths, modules = salience.widths, list(salience.modules.values())
        if not widths:
            raise MixllmError("salience: it holds no layers; measure it again")
        losses = [torch.stack([m.loss[width].double().cpu() for width in widths]) for m in modules]
        for name, loss in zip(salience.modules, losses, strict=True):
            if not torch.isfinite(loss).all():
                raise MixllmError(f"salience: {name}: a loss is NaN or infinite; measure it again")
        counts = [m.out_features for m in modules]
        repeats = torch.tensor(counts)
        return cls(
            widths=widths,
            layer=torch.arange(len(modules)).repeat_interleave(repeats),
            length=torch.tensor([m.in_features for m in modules]).repeat_interleave(repeats),
            loss=torch.cat(losses, dim=1),
            counts=counts,
            weights=[m.out_features * m.in_features for m in modules],
        )


@dataclass(frozen=True)
class _Steps:
    """Upgrades in the order in which they are taken: row `row` to `width` for `cost` more; int64 [S] each."""

    row: Tensor
    width: Tensor
    cost: Tensor

    def __getitem__(self, index: Tensor | slice) -> _Steps:
        return _Steps(self.row[index], self.width[index], self.cost[index])


def _by_bits(rows: _Rows, bits: float, scope: Scope, seed: int) -> tuple[_Steps, list[Fraction]]:
    """Steps that cost bits, and each layer's share of those beyond the narrowest width."""
    low, high = rows.widths[0], rows.widths[-1]
    if not low <= bits <= high:
        raise MixllmError(f"bits: {bits:g} is outside the widths; choose {low} to {high}")
    steps = _to_widest(rows, _drawn(rows, seed)) if scope == "random" else _hull(rows)
    return steps, [(_exact(bits) - low) * size for size in rows.weights]


def _by_channels(rows: _Rows, channels: float, scope: Scope, seed: int) -> tuple[_Steps, list[Fraction]]:
    """Steps that cost a row each, and each layer's share of the rows."""
    if not 0 <= channels <= 100:
        raise MixllmError(f"channels: {channels:g} is not a percentage; choose 0 to 100")
    steps = _to_widest(rows, _drawn(rows, seed) if scope == "random" else _worst_first(rows))
    steps = _Steps(steps.row, steps.width, torch.ones_like(steps.cost))
    return steps, [_exact(channels) / 100 * count for count in rows.counts]


def _exact(budget: float) -> Fraction:
    """The decimal that was written: 4.4 is 44/10 here, so that a budget is met to the bit."""
    return Fraction(str(budget))


def _drawn(rows: _Rows, seed: int) -> Tensor:
    return torch.randperm(len(rows.layer), generator=torch.Generator().manual_seed(seed))


def _worst_first(rows: _Rows) -> Tensor:
    """The paper's order: by the loss at the narrowest width alone."""
    return torch.argsort(rows.loss[0], descending=True, stable=True)


def _to_widest(rows: _Rows, order: Tensor) -> _Steps:
    extra = rows.widths[-1] - rows.widths[0]
    return _Steps(order, torch.full_like(order, rows.widths[-1]), rows.length[order] * extra)


def _hull(rows: _Rows) -> _Steps:
    """Each row's steps along the lower convex hull of its (bits, loss) points, steepest of all rows first.

    Found by walking: from each point go to the one with the steepest descent, the farthest of equals. The
    widest width is always reached, at worst by steps that avoid nothing and so come last.
    """
    at = torch.zeros_like(rows.layer)
    steepness = torch.full((len(at),), torch.inf, dtype=torch.float64)
    found: list[tuple[Tensor, _Steps]] = []
    for here, width in enumerate(rows.widths[:-1]):
        walking = torch.nonzero(at == here)[:, 0]
        loss, length = rows.loss[:, walking], rows.length[walking]
        extra = torch.tensor(rows.widths[here + 1 :]) - width
        slope = (loss[here] - loss[here + 1 :]) / extra[:, None]
        best = slope.amax(dim=0)
        farthest = len(extra) - 1 - (slope == best).flip(0).int().argmax(dim=0)
        # Rounding must not let a later step of a row come before an earlier one.
        value = torch.minimum(best / length, steepness[walking])
        steepness[walking], at[walking] = value, farthest + here + 1
        found.append((value, _Steps(walking, extra[farthest] + width, extra[farthest] * length)))
    order = torch.argsort(torch.cat([value for value, _ in found]), descending=True, stable=True)
    row, target, cost = (
        torch.cat([getattr(steps, name) for _, steps in found])[order] for name in ("row", "width", "cost")
    )
    return _Steps(row, target, cost)


def _spend(steps: _Steps, allowance: Fraction) -> _Steps:
    """The steps, in order, before the first that the allowance does not cover."""
    return steps[: int((steps.cost.cumsum(0) <= floor(allowance)).sum())]


def _spend_by_layer(steps: _Steps, shares: list[Fraction], rows: _Rows) -> _Steps:
    layer = rows.layer[steps.row]
    order = torch.argsort(layer, stable=True)
    sizes = torch.bincount(layer, minlength=len(shares)).tolist()
    taken, left = [], Fraction()
    for index, share in zip(torch.split(order, sizes), shares, strict=True):
        bought = _spend(steps[index], share + left)
        left += share - int(bought.cost.sum())
        taken.append(index[: len(bought.row)])
    return steps[torch.cat(taken)]
