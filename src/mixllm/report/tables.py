"""The report's tables, as text, and how its numbers are written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mixllm.evaluate import REFERENCE
from mixllm.human import size
from mixllm.report.findings import Layer
from mixllm.report.measured import Measured, Row

WORST = 10


@dataclass(frozen=True)
class Table:
    """Cells as text; the first column names the row."""

    caption: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


def measured_table(measured: Measured) -> Table:
    """A line a model, the float one first; what a phone shows without a push comes first too."""
    columns = ("model", "perplexity", "KL", "top-1 %", "payload bits", "with scales", "size")
    windows = "1 window" if measured.windows == 1 else f"{measured.windows} windows"
    caption = f"{windows} of {measured.window} tokens of {measured.text}; KL in nats a token"
    return Table(caption, columns, [measured_cells(row) for row in measured.rows])


def measured_cells(row: Row) -> tuple[str, ...]:
    """Name, perplexity, KL in nats a token, top-1 in percent, bits without and with scales, size."""
    stored = (bits(row.payload_bits), bits(row.bits), "" if row.bytes is None else size(row.bytes))
    perplexity = pair(row.perplexity, row.perplexity_error, 2)
    if row.name == REFERENCE:
        return (row.name, perplexity, "", "", *stored)
    error = None if row.top1_error is None else 100 * row.top1_error
    return (row.name, perplexity, pair(row.kl, row.kl_error), pair(100 * row.top1, error, 1), *stored)


def difference_table(measured: Measured) -> Table | None:
    """A line a checkpoint but the first, which they are compared with; None for one alone."""
    if not measured.differences:
        return None
    against = measured.differences[0].against
    return Table(
        f"Difference from {against}, paired over windows, nats a token",
        ("model", "NLL", "KL"),
        [(d.model, pair(d.nll, d.nll_error), pair(d.kl, d.kl_error)) for d in measured.differences],
    )


def worst_table(layers: list[Layer], wide: str) -> Table | None:
    """The layers that cost the most, as they are stored; wide: what rows of more than 4 bits are called."""
    known = [layer for layer in layers if layer.loss is not None]
    if not known:
        return None
    worst = sorted(known, key=lambda layer: -(layer.loss or 0.0))[:WORST]
    columns = [
        ("layer", [x.name for x in worst]),
        ("loss", [_known(x.loss) for x in worst]),
        (f"{wide} %", [f"{x.wide_percent:.1f}" for x in worst]),
        ("rounding error", [_known(x.error) for x in worst]),
        ("outliers", [_known(x.peak_over_mean) for x in worst]),
    ]
    # Rounding to nearest sees no text, so that there is nothing to say of what the layers read.
    names, cells = zip(*(column for column in columns if any(column[1])), strict=True)
    caption = "Layers with the largest predicted loss, nats a token, as they are stored"
    return Table(caption, names, list(zip(*cells, strict=True)))


def number(value: float) -> str:
    """Three significant digits; large numbers whole, an exponent only for very small ones."""
    return f"{value:,.0f}" if abs(value) >= 99.95 else f"{value:#.3g}"


def pair(mean: float, error: float | None, digits: int = 4) -> str:
    """A mean and its standard error where it has one."""
    return f"{mean:.{digits}f}" + ("" if error is None else f" ± {error:.{digits}f}")


def bits(value: float | None) -> str:
    """Of a weight; None where a foreign checkpoint does not tell."""
    return "unknown" if value is None else f"{value:.2f}"


def _known(value: float | None) -> str:
    return "" if value is None else number(value)
