"""Which output channel is stored at which width: what each costs the loss, budgets, plan files, reports."""

from mixllm.plan.choose import choose
from mixllm.plan.compare import ModuleChange, compare
from mixllm.plan.module import ModulePlan
from mixllm.plan.plan import Plan
from mixllm.plan.report import Report, Share, report
from mixllm.plan.salience import ModuleSalience, Salience

__all__ = [
    "ModuleChange",
    "ModulePlan",
    "ModuleSalience",
    "Plan",
    "Report",
    "Salience",
    "Share",
    "choose",
    "compare",
    "report",
]
