"""Tables of measurements against the float model, each figure with its standard error over windows."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from math import isnan
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mixllm.cli.console import print_text
from mixllm.demo import Demo, place
from mixllm.evaluate import REFERENCE, Measurement, mean_and_error, paired_difference
from mixllm.human import size
from mixllm.report.measured import Measured
from mixllm.report.tables import difference_table, measured_table, pair

_FIGURES = ("perplexity", "KL", "top-1 %")
_ERRORS = "±: standard error over windows; a perplexity's is that of its distance from the float model's."


def show_measurements(console: Console, found: Mapping[str, Measurement]) -> None:
    """A line a model; KL divergence in nats a token."""
    table = _table("model", *_FIGURES)
    for name, measured in found.items():
        table.add_row(name, *_figures(measured, found[REFERENCE]))
    console.print(table)
    count = len(found[REFERENCE].nll)
    print_text(console, "1 window." if count == 1 else f"{count} windows. {_ERRORS}")


def show_tasks(console: Console, scores: Mapping[str, Mapping[str, Mapping[str, float | None]]]) -> None:
    """A line a task and metric, a column a model. scores: by model, task and metric."""
    table = _table("task", "metric", *scores)
    table.columns[1].justify = "left"
    for task, metrics in next(iter(scores.values())).items():
        for metric in metrics:
            if metric != "documents" and not metric.endswith("_error"):
                table.add_row(task, metric, *(_score(by_task[task], metric) for by_task in scores.values()))
    console.print(table)


def show_comparison(console: Console, measured: Measured) -> None:
    """A line a model, then each quantized model's difference from the first."""
    for found in (measured_table(measured), difference_table(measured)):
        if found is not None:
            table = _table(*found.columns)
            for row in found.rows:
                table.add_row(*row)
            console.print(table)
            print_text(console, f"{found.caption}.\n")
    print_text(console, _ERRORS)


def show_demo(console: Console, demo: Demo, out: Path) -> None:
    """The table with sizes, notes on it, what the model wrote, and how to go on in directory `out`."""
    table = _table("model", "bits", "size", *_FIGURES)
    reference = demo.rows[REFERENCE].measured
    for name, row in demo.rows.items():
        table.add_row(name, f"{row.bits:.2f}", size(row.bytes), *_figures(row.measured, reference))
    console.print(table)
    console.print()
    for note in (f"bits: a quantized weight, with scales and zeros. {_ERRORS}", *demo.notes):
        print_text(console, note)
    console.print(f"\n{demo.shown} answers\n> {demo.prompt}")
    print_text(console, demo.answer)
    command = shlex.join(["mixllm", "chat", str(place(out, demo.shown))])
    console.print(f"\nThe checkpoints stay in {out}. To talk with this one: {command}", soft_wrap=True)


def _table(*columns: str) -> Table:
    table = Table(*columns, box=None, pad_edge=False)
    for column in table.columns:
        column.no_wrap = True
    for column in table.columns[1:]:
        column.justify = "right"
    return table


def _figures(measured: Measurement, reference: Measurement) -> tuple[str, ...]:
    if measured is reference:
        return f"{measured.perplexity:.2f}", "", ""
    _, error = paired_difference(measured.nll, reference.nll)
    kl, top1 = mean_and_error(measured.kl), mean_and_error(100 * measured.top1)
    # To first order: d exp(nll) = exp(nll) d nll.
    return _pair((measured.perplexity, measured.perplexity * error), 2), _pair(kl, 4), _pair(top1, 1)


def _score(metrics: Mapping[str, float | None], metric: str) -> str:
    value, error = metrics[metric], metrics.get(f"{metric}_error")
    if value is None:
        return ""
    return pair(value, error)


def _pair(mean_and_error: tuple[float, float], digits: int) -> str:
    mean, error = mean_and_error
    return pair(mean, None if isnan(error) else error, digits)
