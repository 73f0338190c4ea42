"""Tables and a plot from the times that kernels.py writes."""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import Any

from mixllm.config import GROUP_SIZE, PROFILES, Format

SHAPES = [
    (6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336),
    (10240, 8192), (8192, 8192), (57344, 8192), (8192, 28672),
]  # fmt: skip
# The profiles, and what is between them: float group scales with one activation scale a token.
FORMATS = {**PROFILES, "group": PROFILES["fast"].model_copy(update={"weight_scale": "group"})}


def weight_bytes(format: Format, n: int, k: int, share8: float) -> int:
    """What the product must read of a weight."""
    n8, groups = round(n * share8), -(-k // GROUP_SIZE)
    per4, per8 = (48, 32) if format.weight_scale == "group" else (16, 0)
    return (n - n8) * (k // 2 + groups * per4 // 16) + n8 * (k + groups * per8 // 16)


Kind = tuple[str, str, float]  # impl, format, share of 8-bit rows
CUBLAS: Kind = ("cublas_bf16", "", 0.0)


def by_kind(data: dict[str, Any]) -> dict[Kind, dict[tuple[int, int, int], float]]:
    """Microseconds by kind and (N, K, T)."""
    times: dict[Kind, dict[tuple[int, int, int], float]] = {}
    for r in data["rows"]:
        times.setdefault((r["impl"], r["format"], r["share8"]), {})[r["N"], r["K"], r["T"]] = r["us"]
    return times


def speedups(data: dict[str, Any], kind: Kind) -> dict[int, float]:
    """By number of tokens: cuBLAS's time over this one's, geometric mean over the shapes that both ran."""
    times = by_kind(data)
    ratios: dict[int, list[float]] = {}
    for where, us in times[kind].items():
        if where in times[CUBLAS]:
            ratios.setdefault(where[2], []).append(times[CUBLAS][where] / us)
    return {t: statistics.geometric_mean(values) for t, values in sorted(ratios.items())}


def name_of(kind: Kind) -> str:
    impl, format, share8 = kind
    return f"{impl} {format} {share8:.0%} 8 bit" if format else impl


def report(data: dict[str, Any]) -> str:
    """Markdown: speed-up over cuBLAS bf16, and decode's time over the byte time."""
    tokens = sorted({r["T"] for r in data["rows"]})
    times = by_kind(data)
    lines = ["| | " + " | ".join(f"T = {t}" for t in tokens) + " |", "|---" * (len(tokens) + 1) + "|"]
    for kind in sorted(times.keys() - {CUBLAS}):
        found = speedups(data, kind)
        cells = " | ".join(f"{found[t]:.2f}" if t in found else "" for t in tokens)
        lines.append(f"| {name_of(kind)} | {cells} |")
    few = [t for t in tokens if t <= 16]
    lines += ["", "Microseconds over the byte time, 10 % 8-bit rows:", ""]
    lines += ["| N x K | format | " + " | ".join(f"T = {t}" for t in few) + " |"]
    lines += ["|---" * (len(few) + 2) + "|"]
    for n, k in SHAPES:
        for name in sorted({r["format"] for r in data["rows"] if r["T"] in few} - {""}):
            floor = weight_bytes(FORMATS[name], n, k, 0.1) / data["read_GBps"] / 1e3
            found = {t: times["mixllm", name, 0.1].get((n, k, t), math.nan) for t in few}
            cells = " | ".join("" if math.isnan(us) else f"{us - floor:.1f}" for us in found.values())
            lines.append(f"| {n} x {k} | {name} | {cells} |")
    return "\n".join(lines)


def insert(data: dict[str, Any], name: str, page: Path) -> None:
    """Puts the tables between the page's marks of this name, and the plot beside the page.

    Raises ValueError where the page lacks the marks.
    """
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, found, rest = page.read_text().partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"{page} lacks the marks {begin} and {end}")
    plot(data, page.with_name(f"{name}.svg"))
    image = f"![Speed-up over cuBLAS bf16 by tokens]({name}.svg)"
    page.write_text("\n".join((before + begin, report(data), "", image, end + after)))


def plot(data: dict[str, Any], file: Path) -> None:
    """Speed-up over cuBLAS bf16 by number of tokens, as an SVG; 10 % 8-bit rows, and the other libraries.

    A colour is a format or a library: solid by itself, dotted with the quantization of activations.
    """
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 4.5))
    colours: dict[tuple[str, str], str] = {}
    for kind in sorted(by_kind(data).keys() - {CUBLAS}, key=lambda kind: (not kind[1], kind)):
        impl, format, share8 = kind
        if format and share8 != 0.1:
            continue
        found, quantizes = speedups(data, kind), impl.endswith("+quant")
        colour = colours.setdefault((impl.removesuffix("+quant"), format), f"C{len(colours)}")
        axes.plot(
            list(found), list(found.values()), ":" if quantizes else "-", color=colour, label=name_of(kind),
            marker="o" if format else "x", ms=4, lw=2 if format else 1,
        )  # fmt: skip
    axes.axhline(1, color="black", lw=0.8)
    tokens = sorted({row["T"] for row in data["rows"]})
    axes.set_xscale("log", base=2)
    axes.set_xticks(tokens, [str(t) for t in tokens], rotation=45)
    axes.set(xlabel="tokens", ylabel="times cuBLAS bf16", title=f"{data['device']}, {data['date']}")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.tight_layout()
    figure.savefig(file, format="svg", metadata={"Date": None})
