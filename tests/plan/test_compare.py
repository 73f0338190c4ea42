import pytest
import torch
from tests.saliences import random_salience

from mixllm.errors import MixllmError
from mixllm.plan import ModuleChange, ModulePlan, Plan, choose, compare


def plan_of(**widths: list[int]) -> Plan:
    modules = {name: ModulePlan(16, torch.tensor(rows, dtype=torch.uint8)) for name, rows in widths.items()}
    return Plan(modules, rule="bits", budget=6)


def test_rows_raised_and_lowered_by_module():
    first = plan_of(a=[4, 4, 8, 8], b=[4, 8], c=[8])
    second = plan_of(a=[8, 8, 4, 8], b=[4, 8], c=[4])
    assert compare(first, second) == {"a": ModuleChange(2, 1), "c": ModuleChange(0, 1)}
    assert compare(second, first) == {"a": ModuleChange(1, 2), "c": ModuleChange(1, 0)}


def test_a_larger_budget_only_raises():
    salience = random_salience()
    changes = compare(choose(salience, bits=5), choose(salience, bits=6))
    assert changes and not any(change.lowered for change in changes.values())
    assert compare(choose(salience, bits=5), choose(salience, bits=5)) == {}


def test_plans_of_different_models():
    with pytest.raises(MixllmError, match="only one of them has the module b"):
        compare(plan_of(a=[4]), plan_of(a=[4], b=[4]))
    with pytest.raises(MixllmError, match="a: its shape differs"):
        compare(plan_of(a=[4]), plan_of(a=[4, 4]))
