"""Tables and a plot from the times that kernels.py writes."""

from __future__ import annotations

import math
import statistics
from typing import Any

from mixllm.config import GROUP_SIZE, PROFILES, Format

SHAPES = [
    (6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336),
    (10240, 8192), (8192, 8192), (57344, 8192), (8192, 28672),
]  # fmt: skip


def weight_bytes(format: Format, n: int, k: int, share8: float) -> int:
    """What the product must read of a weight."""
    n8, groups = round(n * share8), -(-k // GROUP_SIZE)
    per4, per8 = (48, 32) if format.weight_scale == "group" else (16, 0)
    return (n - n8) * (k // 2 + groups * per4 // 16) + n8 * (k + groups * per8 // 16)


def report(data: dict[str, Any]) -> str:
    """Markdown: speed-up over cuBLAS bf16 (geometric mean over the shapes), decode over the byte time."""
    times = {(r["impl"], r["format"], r["share8"], r["N"], r["K"], r["T"]): r["us"] for r in data["rows"]}
    tokens = sorted({r["T"] for r in data["rows"]})
    kinds = sorted({(r["impl"], r["format"], r["share8"]) for r in data["rows"]} - {("cublas_bf16", "", 0.0)})
    lines = ["| | " + " | ".join(f"T = {t}" for t in tokens) + " |", "|---" * (len(tokens) + 1) + "|"]
    for kind in kinds:
        cells = []
        for t in tokens:
            ratios = [
                times["cublas_bf16", "", 0.0, n, k, t] / times[*kind, n, k, t]
                for n, k in SHAPES
                if (*kind, n, k, t) in times
            ]
            cells.append(f"{math.exp(statistics.fmean(map(math.log, ratios))):.2f}" if ratios else "")
        impl, format, share8 = kind
        name = f"{impl} {format} {share8:.0%} 8 bit" if format else impl
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += ["", "Microseconds over the byte time, 10 % 8-bit rows:", ""]
    few = [t for t in tokens if t <= 16]
    lines += ["| N x K | format | " + " | ".join(f"T = {t}" for t in few) + " |"]
    lines += ["|---" * (len(few) + 2) + "|"]
    for n, k in SHAPES:
        for name in sorted({r["format"] for r in data["rows"]} - {""}):
            floor = weight_bytes(PROFILES[name], n, k, 0.1) / data["read_GBps"] / 1e3
            over = [times.get(("mixllm", name, 0.1, n, k, t), math.nan) - floor for t in few]
            lines.append(
                f"| {n} x {k} | {name} | "
                + " | ".join("" if math.isnan(us) else f"{us:.1f}" for us in over)
                + " |"
            )
    return "\n".join(lines)
