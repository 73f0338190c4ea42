"""Files of an earlier run that a user gives to another: a plan to follow, or a salience to choose from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mixllm.errors import MixllmError
from mixllm.plan import ModulePlan, ModuleSalience, Plan, Salience

Given = tuple[Plan | None, Salience | None]


def require_one(plan: str | Path | None, salience: str | Path | None) -> None:
    """Raise MixllmError where both are given."""
    if plan is not None and salience is not None:
        raise MixllmError("salience: has no effect on a finished plan; leave it or the plan out")


def read_given(
    shapes: Mapping[str, tuple[int, int]], plan: str | Path | None, salience: str | Path | None
) -> Given:
    """The plan or the salience in these files.

    shapes: (out_features, in_features) by layer of the model. Raises MixllmError for a file that can't be
    read or is another model's.
    """
    if plan is not None:
        chosen = Plan.load(Path(plan))
        _check_fit(chosen.modules, shapes, plan)
        return chosen, None
    if salience is not None:
        scores = Salience.load(Path(salience))
        _check_fit(scores.modules, shapes, salience)
        return None, scores
    return None, None


def _check_fit(
    modules: Mapping[str, ModulePlan] | Mapping[str, ModuleSalience],
    expected: Mapping[str, tuple[int, int]],
    where: str | Path,
) -> None:
    shapes = {name: (module.out_features, module.in_features) for name, module in modules.items()}
    for name in {**expected, **shapes}:
        if shapes.get(name) != expected.get(name):
            has, needs = shapes.get(name, "missing"), expected.get(name, "no such layer")
            raise MixllmError(
                f"{where}: {name}: {has}, but the model has {needs}; it was made for another model"
            )
