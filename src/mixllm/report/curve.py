"""Predicted loss against bits, from the saved salience: what every other budget would have given."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mixllm.plan import Plan, Salience, choose

# Dense where the curve is steep.
BUDGETS = tuple(float(bits) for bits in np.round([*np.arange(3, 5, 0.1), *np.arange(5, 8.01, 0.5)], 2))


@dataclass(frozen=True)
class Point:
    """bits: payload bits a quantized weight; loss: predicted rise of the loss, nats a token."""

    bits: float
    loss: float


def curve(salience: Salience) -> list[Point]:
    """The best choice at each of BUDGETS that lies between the salience's widths."""
    low, high = salience.widths[0], salience.widths[-1]
    budgets = [bits for bits in BUDGETS if low <= bits <= high]
    return [point(choose(salience, bits=bits), salience) for bits in budgets]


def point(plan: Plan, salience: Salience) -> Point:
    """Where a plan lies: the losses of its rows added up."""
    return Point(plan.payload_bits, sum(predicted(plan, salience).values()))


def predicted(plan: Plan, salience: Salience) -> dict[str, float]:
    """The predicted rise of the loss by layer, nats a token."""
    losses = {}
    for name, module in plan.modules.items():
        loss = salience.modules[name].loss
        losses[name] = float(
            sum(loss[width][module.widths == width].sum(dtype=loss[width].double().dtype) for width in loss)
        )
    return losses
