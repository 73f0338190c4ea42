"""The report's figures, each with the words that stand for it and the table that is behind it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from matplotlib.ticker import MaxNLocator

from mixllm.evaluate import REFERENCE
from mixllm.report.curve import Point
from mixllm.report.drawing import ACCENT, INK, SECOND, Drawing
from mixllm.report.measured import Row
from mixllm.report.tables import Table, bits, number, pair


@dataclass(frozen=True)
class Chart:
    """A figure: SVG, its title, what a person who cannot see it should know, and its data."""

    name: str
    title: str
    summary: str
    svg: str
    table: Table


def pareto(points: Sequence[Point], chosen: Point, measured: Sequence[Row]) -> Chart:
    """Predicted loss against payload bits, the chosen plan, and measured KL where bits are known."""
    shown = [
        row
        for row in measured
        if row.payload_bits is not None and row.payload_bits <= 8 and 0 < row.kl < math.inf
    ]
    with Drawing("pareto", 250) as drawing:
        axes = drawing.figure.subplots()
        axes.plot(
            [p.bits for p in points], [p.loss for p in points], color=ACCENT, label="predicted, best choice"
        )
        axes.plot(
            [chosen.bits], [chosen.loss], "o", color=ACCENT, markersize=8, label="this checkpoint, predicted"
        )
        if shown:
            axes.errorbar(
                [row.payload_bits or 0 for row in shown], [row.kl for row in shown],
                [row.kl_error or 0 for row in shown], fmt="D", color=SECOND, capsize=3,
                markersize=5, label="measured KL",
            )  # fmt: skip
        axes.set_yscale("log")
        axes.set(xlabel="payload bits a weight", ylabel="loss, nats a token")
        axes.grid(True)
        axes.legend()
    rows = [(f"{p.bits:.2f}", "predicted", number(p.loss)) for p in points]
    rows += [(f"{chosen.bits:.2f}", "this checkpoint, predicted", number(chosen.loss))]
    rows += [
        (f"{row.payload_bits:.2f}", f"{row.name}, measured KL", pair(row.kl, row.kl_error)) for row in shown
    ]
    first, last = points[0], points[-1]
    return Chart(
        "pareto",
        "Bits against loss",
        f"The predicted loss falls from {number(first.loss)} at {first.bits:g} bits to "
        f"{number(last.loss)} at {last.bits:g}; "
        f"this checkpoint has {chosen.bits:.2f} bits and {number(chosen.loss)}.",
        drawing.svg,
        Table("Loss by budget", ("payload bits", "what", "nats a token"), rows),
    )


def models(measured: Sequence[Row]) -> Chart | None:
    """KL to the float model, a line a quantized model, with its error; None where none of them is a number,
    as a model's that is broken."""
    rows = [row for row in measured if row.name != REFERENCE and math.isfinite(row.kl)]
    if not rows:
        return None
    most = max(row.kl + (row.kl_error or 0) for row in rows)
    with Drawing("models", 60 + 34 * len(rows)) as drawing:
        axes = drawing.figure.subplots()
        axes.errorbar(
            [row.kl for row in rows], range(len(rows)), xerr=[row.kl_error or 0 for row in rows],
            fmt="o", color=ACCENT, ecolor=INK, capsize=3,
        )  # fmt: skip
        axes.set_yticks(range(len(rows)), [_label(row) for row in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlim(0, 1.15 * most if most > 0 else 1)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.set_xlabel("KL to the float model, nats a token")
        axes.grid(True, axis="x")
    best = min(rows, key=lambda row: row.kl)
    first = f"Of {len(rows)} quantized models " if len(rows) > 1 else ""
    stands = "is nearest to" if len(rows) > 1 else "beside"
    return Chart(
        "models",
        "Distance from the float model",
        f"{first}{best.name} {stands} the float model: KL {pair(best.kl, best.kl_error)}.",
        drawing.svg,
        Table(
            "KL by model",
            ("model", "bits with scales", "KL, nats a token"),
            [(row.name, bits(row.bits), pair(row.kl, row.kl_error)) for row in rows],
        ),
    )


def scatter(pairs: Sequence[tuple[float, float, float]], correlation: float) -> Chart:
    """Predicted loss, measured KL and its error, of random plans."""
    with Drawing("predicted", 250) as drawing:
        axes = drawing.figure.subplots()
        predicted, measured, errors = zip(*pairs, strict=True)
        axes.errorbar(predicted, measured, yerr=errors, fmt="o", color=ACCENT, ecolor=INK, markersize=4)
        axes.set(xlabel="predicted loss, nats a token", ylabel="measured KL, nats a token")
        axes.grid(True)
    return Chart(
        "predicted",
        "Predicted against measured",
        f"{len(pairs)} random plans: predicted loss and measured KL have a rank correlation of "
        f"{correlation:.3f}.",
        drawing.svg,
        Table(
            "Random plans",
            ("predicted loss", "measured KL"),
            [(number(p), pair(m, e)) for p, m, e in sorted(pairs)],
        ),
    )


def heat(
    name: str,
    title: str,
    values: Mapping[tuple[int, str], float],
    unit: str,
    show: Callable[[float], str],
    *,
    log: bool = False,
) -> Chart:
    """values by (depth, kind) as a map, the first block on top: the stronger the colour, the larger."""
    depths = sorted({depth for depth, _ in values})
    kinds = list(dict.fromkeys(kind for _, kind in values))
    scaled = {key: math.log(value) if log else value for key, value in values.items() if value > 0 or not log}
    low, high = (min(scaled.values()), max(scaled.values())) if scaled else (0.0, 0.0)
    with Drawing(name, 110 + 11 * len(depths)) as drawing:
        from matplotlib.collections import PolyCollection
        from matplotlib.colors import to_rgba

        axes, legend = drawing.figure.subplots(2, 1, height_ratios=(11 * len(depths), 10))
        strengths = {
            key: (value - low) / (high - low) if high > low else 0.0 for key, value in scaled.items()
        }
        cells = [_cell(kinds.index(kind), depths.index(depth)) for depth, kind in strengths]
        axes.add_collection(
            PolyCollection(cells, facecolors=[to_rgba(ACCENT, s) for s in strengths.values()])
        )
        axes.set_xlim(0, len(kinds))
        axes.set_ylim(len(depths), 0)
        axes.set_xticks([i + 0.5 for i in range(len(kinds))], kinds, rotation=40, ha="right")
        every = max(1, len(depths) // 10)
        axes.set_yticks([i + 0.5 for i in range(0, len(depths), every)], [str(d) for d in depths[::every]])
        axes.set_ylabel("block")
        axes.tick_params(length=0)
        steps = 32
        shades = [to_rgba(ACCENT, i / (steps - 1)) for i in range(steps)]
        legend.add_collection(PolyCollection([_cell(i, 0) for i in range(steps)], facecolors=shades))
        legend.set_xlim(0, steps)
        legend.set_ylim(0, 1)
        ends = [show(math.exp(end) if log else end) for end in (low, high)]
        legend.set_xticks([0, steps], ends)
        legend.get_xticklabels()[0].set_horizontalalignment("left")
        legend.get_xticklabels()[1].set_horizontalalignment("right")
        legend.set_yticks([])
        legend.set_xlabel(unit + (", logarithmic" if log else ""))
        legend.tick_params(length=0)
    largest = max(values, key=lambda key: values[key])
    return Chart(
        name,
        title,
        f"The largest is {show(values[largest])} in block {largest[0]}, {largest[1]}; "
        f"the least {show(min(values.values()))}. Unit: {unit}.",
        drawing.svg,
        Table(
            f"{title}: {unit}",
            ("block", *kinds),
            [(str(d), *(show(values[d, k]) if (d, k) in values else "" for k in kinds)) for d in depths],
        ),
    )


def _cell(x: int, y: int) -> list[tuple[float, float]]:
    return [(x, y), (x + 1, y), (x + 1, y + 1), (x, y + 1)]


def _label(row: Row) -> str:
    """What matplotlib writes beside a row; a $ of a directory's name begins no formula."""
    name = row.name if len(row.name) <= 20 else f"{row.name[:19]}…"
    name = name.replace("$", r"\$")
    return name if row.bits is None else f"{name}\n{row.bits:.2f} bits"
