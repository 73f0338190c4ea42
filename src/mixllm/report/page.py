"""From findings to one self-contained HTML file: no network, no script."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mixllm.files import write_text
from mixllm.human import size
from mixllm.plan.report import wide_name
from mixllm.report.charts import Chart, heat, models, pareto, scatter
from mixllm.report.drawing import require
from mixllm.report.findings import Findings, Layer
from mixllm.report.measured import Measured
from mixllm.report.tables import difference_table, measured_table, number, worst_table


def write_report(findings: Findings, path: Path) -> None:
    """Draw the report of one checkpoint into the HTML file `path`; needs mixllm[report]."""
    wide = wide_name(findings.widths)
    _write(
        path, "report.html.j2", title=findings.name, f=findings, charts=charts(findings), wide=wide,
        measured=None if findings.measured is None else measured_table(findings.measured),
        worst=worst_table(findings.layers, wide),
    )  # fmt: skip


def write_comparison(measured: Measured, path: Path) -> None:
    """Draw several models' measurements into the HTML file `path`; needs mixllm[report]."""
    _write(
        path, "compare.html.j2", title=f"{Path(measured.model).name}: comparison", m=measured,
        table=measured_table(measured), differences=difference_table(measured), chart=models(measured.rows),
    )  # fmt: skip


def charts(f: Findings) -> dict[str, Chart]:
    """The figures that there is data for, by name."""
    found: list[Chart] = []
    if f.measured is not None and (chart := models(f.measured.rows)) is not None:
        found.append(chart)
    if f.curve is not None and f.chosen is not None:
        found.append(pareto(f.curve, f.chosen, f.measured.rows if f.measured else ()))
    maps: list[tuple[str, str, Callable[[Layer], float | None], str, Callable[[float], str], bool]] = [
        (
            "salience",
            f"What {f.widths[0]} bits would cost",
            lambda x: x.narrow_loss,
            "predicted loss, nats a token",
            number,
            True,
        ),
        (
            "wide",
            f"Share of {wide_name(f.widths)}",
            lambda x: x.wide_percent,
            "percent",
            lambda v: f"{v:.1f}",
            False,
        ),
        ("error", "Rounding error", lambda x: x.error, "relative error of the output", number, False),
        (
            "outliers",
            "Outlier activations",
            lambda x: x.peak_over_mean,
            "largest over mean |x|",
            number,
            True,
        ),
    ]
    for name, title, value, unit, show, log in maps:
        values = {(x.depth, x.kind): v for x in f.layers if (v := value(x)) is not None}
        if values:
            found.append(heat(name, title, values, unit, show, log=log))
    if f.predicted is not None:
        pairs = [(p["predicted"], p["kl"], p["kl_error"]) for p in f.predicted["plans"]]
        found.append(scatter(pairs, f.predicted["rank_correlation"]))
    return {drawn.name: drawn for drawn in found}


def _write(path: Path, template: str, **values: Any) -> None:
    require()
    from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("mixllm.report"),
        autoescape=select_autoescape(("j2",)),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"svg": Markup, "size": size, "number": number, "quoted": shlex.quote}
    write_text(path, environment.get_template(template).render(**values))
