"""Tables of what a plan or a checkpoint holds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from rich.console import Console
from rich.table import Table

from mixllm.cli.console import print_json, stdout
from mixllm.config import Format
from mixllm.human import size
from mixllm.plan import ModuleChange, Plan, Report, Salience, Share, report
from mixllm.plan.report import wide_name

_BAR = 30


def show_report(console: Console, found: Report, format: Format, *, predicted: bool) -> None:
    """Sizes first, then where the rows of more than 4 bits are."""
    checkpoint = f"{size(found.checkpoint_bytes)}{' (predicted)' if predicted else ''}"
    name = wide_name(found.rows)
    facts = {
        "payload": f"{found.payload_bits:.4f} bits a weight",
        "with scales, zeros, row numbers": f"{found.bits:.4f} bits a weight",
        "quantized layers": f"{found.weights / 1e6:,.1f} M weights in {size(found.quantized_bytes)}",
        "other tensors": size(found.other_bytes),
        "checkpoint": checkpoint,
        "rows": ", ".join(f"{count:,} of {width} bits" for width, count in found.rows.items() if count),
        name: f"{found.total.wide:,} of {found.total.rows:,} ({found.total.percent:.2f} %)",
        "format": f"weights {format.weight_scale}, rotation {format.rotation}, "
        f"activations {format.activation_group}",
    }
    _grid(console, facts)
    _shares(console, "by kind", name, found.by_kind)
    _shares(console, "by depth", name, found.by_depth)


def print_plan(plan: Plan, json: bool) -> None:
    """How a plan was made and what a checkpoint of it would take; json: the latter alone."""
    found = report(plan.counts(), plan.format, plan.other_bytes)
    if json:
        print_json(found)
        return
    console = stdout()
    _show_choice(console, plan)
    show_report(console, found, plan.format, predicted=True)


def _show_choice(console: Console, plan: Plan) -> None:
    """How a plan was made, on one line."""
    budget = f"{plan.budget:g} bits" if plan.rule == "bits" else f"{plan.budget:g} % of channels"
    measured = f"{plan.score} of {plan.error} errors" if plan.score else "no salience needed"
    seed = f", seed {plan.seed}" if plan.scope == "random" else ""
    console.print(f"plan: {budget}, {plan.scope}{seed}, {measured}")


def show_changes(console: Console, changes: Mapping[str, ModuleChange]) -> None:
    """The modules that differ, with how many rows each way."""
    table = Table("module", "to more bits", "to fewer bits", box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for name, change in changes.items():
        table.add_row(name, f"{change.raised:,}", f"{change.lowered:,}")
    if changes:
        console.print(table)
    raised = sum(change.raised for change in changes.values())
    lowered = sum(change.lowered for change in changes.values())
    console.print(f"{len(changes)} modules differ: {raised:,} rows to more bits, {lowered:,} to fewer")


def _grid(console: Console, facts: Mapping[str, str]) -> None:
    """A line a fact, with no blanks at its end: a terminal of 80 columns would break each in two."""
    width = max(map(len, facts))
    for name, value in facts.items():
        console.print(f"{name:<{width}}  {value}", soft_wrap=True)


def _shares(
    console: Console, title: str, name: str, shares: Mapping[str, Share] | Mapping[int, Share]
) -> None:
    table = Table(title, "rows", f"{name} %", "", box=None, pad_edge=False)
    table.columns[1].justify = table.columns[2].justify = "right"
    for label, share in shares.items():
        bar = "#" * round(_BAR * share.percent / 100)
        table.add_row(str(label), f"{share.rows:,}", f"{share.percent:.2f}", bar)
    console.print()
    console.print(table)


def show_salience(console: Console, salience: Salience) -> None:
    """The predicted rise of the loss with all rows of a kind of layer at one width."""
    rows = sum(module.out_features for module in salience.modules.values())
    console.print(
        f"salience: {salience.score} of {salience.error} errors, {salience.tokens:,} tokens, "
        f"{len(salience.modules)} layers, {rows:,} rows"
    )
    kinds: defaultdict[str, dict[int, float]] = defaultdict(lambda: dict.fromkeys(salience.widths, 0.0))
    for name, module in salience.modules.items():
        for width, loss in module.loss.items():
            kinds[name.rpartition(".")[2]][width] += float(loss.double().sum())
    table = Table(
        "loss, nats a token", *(f"{width} bit" for width in salience.widths), box=None, pad_edge=False
    )
    for kind, losses in kinds.items():
        table.add_row(kind, *(f"{loss:.3g}" for loss in losses.values()))
    console.print(table)
