"""The tables of accuracy in the README and in docs are those of the results."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
TABLE, C4, PEERS, DAY_BEFORE, GEMMA, GEMMA_C4 = (
    f"accuracy-{name}-h200.json"
    for name in (
        *("smollm2", "smollm2-c4", "peers-smollm2", "widths-smollm2"),
        *("gemma-3-270m-wikitext", "gemma-3-270m-c4"),
    )
)
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
# A page and a results file -> the page's lines, by as many first cells as tell them apart, and their rows.
PAGES = {
    ("choosing", TABLE): {
        "`fast`, 4 bits": "fast W4A8 GPTQ+order+clip",
        "`fast`, 4.4 bits": "fast 4.4 bits global",
        "`fast`, 4.8 bits": "fast 4.8 bits global",
        "`paper`, 4.4 bits": "paper 4.4 bits global",
        "`paper`, 10 % of channels": "paper 10 % channels global",
        "`paper`, 20 % of channels": "paper 20 % channels global",
        "`paper`, 50 % of channels": "paper 50 % channels global",
        "`paper`, uniform 4 bits, GPTQ with order and clip": "paper W4A8 GPTQ+order+clip",
        "widths 3, 4, 5, 6, 8 | 4.40": "fast 4.4 bits of 3-4-5-6-8 global",
        "widths 3, 4, 5, 6, 8 | 4.00": "fast 4.0 bits of 3-4-5-6-8 global",
        "the defaults": "fast 4.8 bits global",
    },
    ("tried", DAY_BEFORE): {
        "3, 4, 8 * | 4.40": "fast 4.4 bits of 3-4-8 global",
        "4, 6, 8 *": "fast 4.4 bits of 4-6-8 global",
        "3, 4, 6, 8 *": "fast 4.4 bits of 3-4-6-8 global",
        "3, 4, 8 * | 4.00": "fast 4.0 bits of 3-4-8 global",
    },
    ("tried", TABLE): {
        "4, 8": "fast 4.4 bits global",
        "3, 4, 5, 6, 8 | 4.40": "fast 4.4 bits of 3-4-5-6-8 global",
        "4 alone": "fast W4A8 GPTQ+order+clip",
        "3, 4, 5, 6, 8 | 4.00": "fast 4.0 bits of 3-4-5-6-8 global",
        "the same, 2 sweeps, scales tuned (4 passes)": f"fast 4.0 bits of 3-4-5-6-8 global{TUNED}",
        **{f"+ 2 sweeps | {bits}0": f"fast {bits} bits global{SWEPT}" for bits in (4.4, 4.8)},
    },
    ("tried", C4): {
        f"{line} | {bits}0": f"fast {bits} bits global{after}"
        for bits in (4.4, 4.8)
        for line, after in (
            ("GPTQ, order, clip", ""),
            ("+ 2 sweeps, scales tuned", TUNED),
            ("+ 2 sweeps, scales and codes learned", CODES),
        )
    },
    **{
        ("tried", file): {
            "`paper`, 10 % of channels by the paper's score": "paper 10 % channels global",
            "`fast` at the same payload bits": "fast, bits of paper 10 %, global",
            "`fast`, 4.4 bits": "fast 4.4 bits global",
            "`fast`, 4.8 bits": "fast 4.8 bits global",
            "`fast`, `--sweeps 2`": f"fast 4.4 bits global{SWEPT}",
            "`fast`, `--sweeps 2 --clip-by gptq --tune 2 --tune-codes`": f"fast 4.4 bits global{CODES}",
        }
        for file in (GEMMA, GEMMA_C4)
    },
    ("peers", PEERS): {
        "mixllm `fast`, swept, tuned": f"fast, at most 4.25 bits{TUNED}",
        "mixllm `fast`": "fast, at most 4.25 bits",
        "mixllm `fast`, row scales | 4.249": "fast, row scales, at most 4.25 bits",
        "mixllm `fast`, row scales | 4.134": "fast, row scales, at most 4.135 bits",
        "AutoRound 0.16, g64, zeros": "AutoRound g64 with zeros",
        "llm-compressor 0.14 AWQ, g64, zeros": "llm-compressor AWQ g64",
        "llm-compressor 0.14 GPTQ, g64, zeros": "llm-compressor GPTQ g64 with zeros",
        "llm-compressor 0.14 GPTQ, g64, no zeros": "llm-compressor GPTQ g64",
        "hqq 0.2.8, g64": "hqq g64",
        "hqq 0.2.8, g128": "hqq g128",
    },
}
# Options after GPTQ are measured on both texts, in one line of the page.
PAGES["tried", TABLE] |= PAGES["tried", C4]
PAGES["tried", GEMMA]["the same *"] = f"fast 4.8 bits global{CODES}"


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


@pytest.mark.parametrize(
    ("page", "file", "start", "name"),
    [(*where, start, name) for where, found in PAGES.items() for start, name in found.items()],
)
def test_lines_of_the_pages_are_those_of_the_results(page: str, file: str, start: str, name: str) -> None:
    first = start.split(" | ")
    (cells,) = (cells for cells in lines(f"docs/{page}.md") if cells[: len(first)] == first)
    row = rows(file)[name]
    assert kl(row) in [cell.strip("*") for cell in cells]
    if page != "choosing":
        assert f"{row['perplexity']:.3f}" in cells
