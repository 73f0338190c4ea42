"""The tables of accuracy in the README and in docs are those of the results."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
TABLE, C4, PEERS = (f"accuracy-{name}-h200.json" for name in ("smollm2", "smollm2-c4", "peers-smollm2"))
SWEPT, TUNED, CODES = ", swept", ", swept, tuned", ", swept, tuned with codes"

# README's line -> the results' row.
README = {
    "float": "float",
    "float weights, int8 activations as `fast` makes them": "float, A8 fast",
    "float weights, int8 activations as `paper` makes them": "float, A8 paper",
    "**`fast`, 4.4 bits (the default)**": "fast 4.4 bits global",
    "`fast`, 4.4 bits, `--sweeps 2 --tune 4`": f"fast 4.4 bits global{TUNED}",
    "`fast`, 4.4 bits, codes learned too: `--sweeps 2 --clip-by gptq --tune 2 --tune-codes`": (
        f"fast 4.4 bits global{CODES}"
    ),
    "`fast`, 4 bits": "fast W4A8 GPTQ+order+clip",
    "`fast`, 4.4 bits, `--widths 3,4,5,6,8` (in the file; on the device they run as 5.8)": (
        "fast 4.4 bits of 3-4-5-6-8 global"
    ),
    "`fast`, 4 bits, the same widths (4.9 on the device), `--sweeps 2 --tune 4`": (
        f"fast 4.0 bits of 3-4-5-6-8 global{TUNED}"
    ),
    "`fast`, 4.8 bits": "fast 4.8 bits global",
    "`fast`, 4.8 bits, `--sweeps 2 --tune 4`": f"fast 4.8 bits global{TUNED}",
    "`fast`, 4.8 bits, codes learned too": f"fast 4.8 bits global{CODES}",
    "`fast`, 8 bits": "fast W8A8 GPTQ+order+clip",
    "`paper`, its rule at 10 % of channels": "paper 10 % channels global",
    "`paper`, 4.4 bits chosen globally": "paper 4.4 bits global",
    "`paper`, 4.4 bits, the best channels of each layer": "paper 4.4 bits local",
    "`paper`, 4.4 bits, channels at random": "paper 4.4 bits random",
    "uniform W8A8, GPTQ with order and clip": "paper W8A8 GPTQ+order+clip",
    "uniform W4A8, GPTQ with order and clip": "paper W4A8 GPTQ+order+clip",
    "uniform W4A8, clip search": "paper W4A8 clip",
    "uniform W4A8, round to nearest": "paper W4A8 RTN",
}
# A page's lines that begin so, with their row in one or two results.
LINES = [
    ("choosing", "`fast`, 4 bits", "fast W4A8 GPTQ+order+clip", TABLE),
    ("choosing", "`fast`, 4.4 bits", "fast 4.4 bits global", TABLE),
    ("choosing", "`fast`, 4.8 bits", "fast 4.8 bits global", TABLE),
    ("choosing", "`paper`, 4.4 bits", "paper 4.4 bits global", TABLE),
    ("choosing", "`paper`, 10 % of channels", "paper 10 % channels global", TABLE),
    ("choosing", "`paper`, 20 % of channels", "paper 20 % channels global", TABLE),
    ("choosing", "`paper`, uniform 4 bits, GPTQ with order and clip", "paper W4A8 GPTQ+order+clip", TABLE),
    ("choosing", "the defaults", "fast 4.4 bits global", TABLE),
    ("choosing", "the defaults", "fast 4.8 bits global", TABLE),
    *(
        ("tried", f"{label} | {bits}0", f"fast {bits} bits global{after}", *results)
        for bits in (4.4, 4.8)
        for label, after, results in (
            ("GPTQ, order, clip", "", [TABLE, C4]),
            ("+ 2 sweeps", SWEPT, [TABLE]),
            ("+ 2 sweeps, scales tuned", TUNED, [TABLE, C4]),
            ("+ 2 sweeps, scales and codes learned", CODES, [TABLE, C4]),
        )
    ),
    ("peers", "mixllm `fast`, swept, tuned", f"fast, at most 4.25 bits{TUNED}", PEERS),
    ("peers", "mixllm `fast`", "fast, at most 4.25 bits", PEERS),
    ("peers", "mixllm `fast`, row scales | 4.249", "fast, row scales, at most 4.25 bits", PEERS),
    ("peers", "mixllm `fast`, row scales | 4.134", "fast, row scales, at most 4.135 bits", PEERS),
    ("peers", "AutoRound 0.16, g64, zeros", "AutoRound g64 with zeros", PEERS),
    ("peers", "llm-compressor 0.14 AWQ, g64, zeros", "llm-compressor AWQ g64", PEERS),
    ("peers", "llm-compressor 0.14 GPTQ, g64, zeros", "llm-compressor GPTQ g64 with zeros", PEERS),
    ("peers", "llm-compressor 0.14 GPTQ, g64, no zeros", "llm-compressor GPTQ g64", PEERS),
    ("peers", "hqq 0.2.8, g64", "hqq g64", PEERS),
    ("peers", "hqq 0.2.8, g128", "hqq g128", PEERS),
]


@cache
def rows(file: str) -> dict[str, dict[str, Any]]:
    found = json.loads((ROOT / "benchmarks" / "results" / file).read_text())["rows"]
    return {row["name"]: row for row in found}


def lines(page: str) -> list[list[str]]:
    """The cells of every line of the page's tables."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in re.findall(r"^\|.*\|$", text, re.M)]


def kl(row: dict[str, Any]) -> str:
    mean, error = (f"{row[key]:.4f}".lstrip("0") for key in ("kl", "kl_error"))
    return mean if error == ".0000" else f"{mean} +- {error}"


def table() -> dict[str, list[str]]:
    """README's table of accuracy, by its first column."""
    return {first: rest for first, *rest in lines("README.md") if len(rest) == 5 and first.strip("-")}


def test_the_readme_has_these_lines() -> None:
    assert list(table()) == list(README)


@pytest.mark.parametrize("line", README)
def test_the_table_of_accuracy_is_that_of_the_results(line: str) -> None:
    row = rows(TABLE)[README[line]]
    bits, whole, perplexity, found, top1 = table()[line]
    assert perplexity.strip("*") == f"{row['perplexity']:.3f}"
    if line != "float":
        assert (found, top1) == (kl(row), f"{100 * row['top1']:.1f}")
    if "bits" in row:
        assert (bits, whole) == (f"{row['payload_bits']:.2f}", f"{row['bits']:.2f}")


@pytest.mark.parametrize(("page", "start", "name", "results"), [(*line[:3], line[3:]) for line in LINES])
def test_lines_of_the_pages_are_those_of_the_results(
    page: str, start: str, name: str, results: tuple[str, ...]
) -> None:
    first = start.split(" | ")
    (cells,) = (cells for cells in lines(f"docs/{page}.md") if cells[: len(first)] == first)
    for file in results:
        row = rows(file)[name]
        assert kl(row) in (cell.strip("*") for cell in cells)
        if page != "choosing":
            assert f"{row['perplexity']:.3f}" in cells
