"""lm-evaluation-harness: its tasks, run on a model that is loaded already.

Importing this module needs lm-eval (pip install 'mixllm[lm-eval]').
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import PreTrainedModel

from mixllm.errors import MixllmError, one_line

# Requests that go through the model at once: their logits over the whole vocabulary are there together.
BATCH = 4

# Task -> metric -> value, with the metric's standard error as "<metric>_error" (None where it has none).
TaskScores = dict[str, dict[str, float | None]]


class Tasks:
    """Tasks by their names in lm-eval, built in or from YAML files under the directory `include`.

    limit: only so many documents of each task. Raises MixllmError for a name that lm-eval does not know.
    """

    def __init__(self, names: Sequence[str], include: Path | None = None, limit: int | None = None) -> None:
        # It warns of model options that a loaded model makes meaningless.
        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        self.names, self.limit = list(names), limit
        self.manager = _manager(names, include)
        known = set(self.manager.all_tasks)
        for name in names:
            if name not in known:
                raise MixllmError(f"--tasks: lm-eval has no task {name!r}; its list: lm-eval ls tasks")

    def run(self, model: PreTrainedModel, tokenizer: Any) -> TaskScores:
        """Every task's scores, groups of tasks included; "documents" is how many were asked.

        Raises MixllmError where a task's data cannot be had.
        """
        asked: Any = simple_evaluate(
            HFLM(pretrained=model, tokenizer=tokenizer, batch_size=BATCH),
            tasks=self.names,
            limit=self.limit,
            task_manager=self.manager,
            log_samples=False,
        )
        counts = asked["n-samples"]
        return {
            name: _scores(found) | ({"documents": counts[name]["effective"]} if name in counts else {})
            for name, found in asked["results"].items()
        }


def _manager(names: Sequence[str], include: Path | None) -> _Manager:
    if include is None:
        return _Manager()
    if not include.is_dir():
        raise MixllmError(f"{include}: no such directory; give the one that holds the tasks' YAML files")
    own = _Manager(include_path=str(include), include_defaults=False)
    # The list of the many built-in tasks takes some seconds to make.
    return own if set(names) <= set(own.all_tasks) else _Manager(include_path=str(include))


class _Manager(TaskManager):
    def load(self, task_list: Any) -> Any:
        """Raises MixllmError where a task's data cannot be had."""
        try:
            return super().load(task_list)
        except Exception as error:  # every kind of data set has its own kinds of error
            reason = one_line(error)
            raise MixllmError(f"--tasks: {type(error).__name__} while loading the data: {reason}") from None


def _scores(found: dict[str, Any]) -> dict[str, float | None]:
    """lm-eval's "acc,none" and "acc_stderr,none" as "acc" and "acc_error"; a filter's name stays."""
    scores: dict[str, float | None] = {}
    for key, value in found.items():
        metric, comma, how = key.partition(",")
        if comma:
            error = metric.endswith("_stderr")
            name = metric.removesuffix("_stderr") + ("" if how == "none" else f",{how}")
            number = isinstance(value, int | float) and value == value
            scores[f"{name}_error" if error else name] = value if number else None
    return scores
