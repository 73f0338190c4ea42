"""Which output channel is stored at which width: budgets, plan files and what a plan will cost."""

from mixllm.plan.choose import choose
from mixllm.plan.compare import ModuleChange, compare
from mixllm.plan.plan import ModulePlan, Plan
from mixllm.plan.report import Report, Share, report

__all__ = ["ModuleChange", "ModulePlan", "Plan", "Report", "Share", "choose", "compare", "report"]
