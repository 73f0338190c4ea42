"""What changes between two plans of one model."""

from __future__ import annotations

from dataclasses import dataclass

from mixllm.errors import MixllmError
from mixllm.plan.plan import Plan


@dataclass(frozen=True)
class ModuleChange:
    """Rows that the second plan stores wider (raised) or narrower (lowered) than the first."""

    raised: int
    lowered: int


def compare(first: Plan, second: Plan) -> dict[str, ModuleChange]:
    """The modules whose rows differ, in model order; MixllmError if the plans are of different models."""
    if first.modules.keys() != second.modules.keys():
        name = min(first.modules.keys() ^ second.modules.keys())
        raise MixllmError(f"plans: only one of them has the module {name}; they are of different models")
    changes = {}
    for name, a in first.modules.items():
        b = second.modules[name]
        if (a.out_features, a.in_features) != (b.out_features, b.in_features):
            raise MixllmError(f"plans: {name}: its shape differs; they are of different models")
        change = ModuleChange(int((b.widths > a.widths).sum()), int((b.widths < a.widths).sum()))
        if change.raised or change.lowered:
            changes[name] = change
    return changes
