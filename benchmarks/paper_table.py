"""Rows of the paper's perplexity table, made anew and checked against its figures.

    python benchmarks/paper_table.py MODEL... --calibration wiki.train.raw --text wiki.test.raw [--json FILE]

For each MODEL (hub name, directory or GGUF file): float, and MixLLM at W4, W4.4, W4.8 and W8 by the paper's
rule in its format, with int8 activations, then mixllm's own default. The paper's figures are in
paper_table.json, found by the last part of the model's name. A perplexity above the paper's by more than the
tolerance fails: exit code 1. A model that the paper does not have is measured, and said to be none of its.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mixllm.config import PROFILES, QuantConfig
from mixllm.evaluate import REFERENCE
from mixllm.files import write_json
from mixllm.pipeline import quantize
from mixllm.progress import Silent
from mixllm.records import SALIENCE
from mixllm.report.measured import Row
from mixllm.report.models import Bench, measure_all

PAPER = Path(__file__).with_name("paper_table.json")
# The rule "channels" with the paper's salience; uniform rows need none.
RULE: dict[str, Any] = {
    "format": PROFILES["paper"],
    "score": "taylor",
    "error": "rtn",
    "sweeps": 0,
    "tune": 0,
}
ROWS: dict[str, dict[str, Any]] = {
    "MixLLM W4A8": {**RULE, "bits": 4},
    "MixLLM W4.4A8": {**RULE, "channels": 10},
    "MixLLM W4.8A8": {**RULE, "channels": 20},
    "MixLLM W8A8": {**RULE, "bits": 8},
    "mixllm default": {"bits": 4.4},
}


def rows_of(model: str, args: argparse.Namespace, work: Path) -> dict[str, Row]:
    """Quantize and measure, one checkpoint on disk at a time; the paper's salience is measured once."""
    bench = Bench.open(model, args.text, args.window, args.windows, args.device, args.dtype)
    base = {"calibration": args.calibration, "samples": args.samples, "window": args.window}
    found: dict[str, Row] = {}
    kept = work / "paper.safetensors"
    kept.unlink(missing_ok=True)
    for name, options in ROWS.items():
        config, out = QuantConfig(**base, **options), work / name
        reuse = kept if config.channels is not None and kept.exists() else None
        quantize(model, out, config, device=args.device, dtype=args.dtype, salience=reuse, overwrite=True)
        if config.channels is not None and not kept.exists():
            shutil.copy(out / SALIENCE, kept)
        measured = measure_all(bench, [str(out)], Silent())
        found.setdefault(REFERENCE, measured.rows[0])
        found[name] = measured.rows[1]
        shutil.rmtree(out)
        print(f"{model}: {name}: {found[name].perplexity:.3f}", file=sys.stderr, flush=True)
    return found


def checked(rows: dict[str, Row], paper: dict[str, float] | None, tolerance: float) -> list[dict[str, Any]]:
    """A line a row: its figures, the paper's and whether it holds (None where the paper has none)."""
    lines = []
    for name, row in rows.items():
        theirs = None if paper is None else paper.get(name)
        # Better than the paper is no failure, except for the float model: then something else was measured.
        near = None if theirs is None else row.perplexity <= theirs * (1 + tolerance)
        if name == REFERENCE and theirs is not None:
            near = abs(row.perplexity / theirs - 1) <= tolerance
        lines.append({"row": name, **row.model_dump(exclude={"name"}), "paper": theirs, "holds": near})
    return lines


def paper_row(model: str, papers: dict[str, dict[str, float]]) -> dict[str, float] | None:
    last = model.rstrip("/").rpartition("/")[2]
    return next((row for name, row in papers.items() if last == name.rpartition("/")[2]), None)


def table(model: str, lines: list[dict[str, Any]]) -> str:
    text = [f"{model}", "| | bits with scales | perplexity | paper | |", "|---|---|---|---|---|"]
    for line in lines:
        verdict = {None: "", True: "holds", False: "DOES NOT HOLD"}[line["holds"]]
        theirs = "" if line["paper"] is None else f"{line['paper']:.2f}"
        bits = "" if line["bits"] is None else f"{line['bits']:.2f}"
        text.append(f"| {line['row']} | {bits} | {line['perplexity']:.3f} | {theirs} | {verdict} |")
    if all(line["paper"] is None for line in lines):
        text.append("The paper has no row for this model: nothing to check against.")
    return "\n".join(text)


def main() -> int:
    args = arguments()
    papers = json.loads(PAPER.read_text())["models"]
    results: dict[str, Any] = {}
    for model in args.models:
        with TemporaryDirectory(prefix="mixllm-", dir=args.work) as work:
            rows = rows_of(model, args, Path(work))
        results[model] = checked(rows, paper_row(model, papers), args.tolerance)
        print(table(model, results[model]), flush=True)
        if args.json:
            write_json(Path(args.json), results)
    return int(any(line["holds"] is False for lines in results.values() for line in lines))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--calibration", required=True, help="WikiText-2 train")
    parser.add_argument("--text", required=True, help="WikiText-2 test")
    parser.add_argument("--window", type=int, default=2048)
    parser.add_argument("--windows", type=int, help="only so many; all of them without")
    parser.add_argument("--samples", type=int, default=128, help="calibration windows")
    parser.add_argument("--tolerance", type=float, default=0.01, help="relative, in perplexity")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--work", default=None, help="where checkpoints lie for a while")
    parser.add_argument("--json")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
