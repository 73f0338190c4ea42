"""Accuracy of every choice mixllm makes, on one model, calibrated on one text and measured on another.

    python benchmarks/accuracy.py MODEL --calibration TRAIN --text TEST --json FILE [--device cuda]

Prints and writes a table: float; W4 and W8 by RTN, clip search, GPTQ and all together, with and without
int8 activations; global, local and random choice of the 8-bit rows at several budgets, in both profiles.
Perplexity as GPTQ's papers measure it, mean KL divergence and top-1 agreement against the float model,
and differences with standard errors paired over windows. FILE is written anew after every line of
the table, so a run that is cut leaves what it had.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import nullcontext
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from accuracy_arguments import parsed, shared_arguments
from accuracy_claims import claims, table
from accuracy_models import Builder, file_name
from accuracy_variants import Variant, variants
from torch import Tensor
from transformers import AutoTokenizer

from mixllm.choosing import is_uniform, score
from mixllm.config import QuantConfig
from mixllm.data import load_text, windows
from mixllm.evaluate import REFERENCE, Measurement, measure
from mixllm.job import open_job
from mixllm.placement import load_float
from mixllm.source import open_source


class Bench:
    """What every line needs, opened once in each process: the job, the float model and the test windows."""

    def __init__(self, args: argparse.Namespace, saliences: Path) -> None:
        config = QuantConfig(**shared(args), **tuning(args))
        self.job = open_job(args.model, config, device=args.device, dtype="float32")
        self.reference = load_float(self.job.source, self.job.decoder.device, torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(self.job.source.path)
        test = windows(load_text(args.text), tokenizer, args.window, args.windows)
        self.test: Tensor = test.to(self.job.decoder.device)
        self.saliences, self.batch = saliences, args.batch
        self.builder = Builder(self.job, self.reference, args.backend, saliences)

    def score(self, config: QuantConfig) -> str:
        score(self.job, config).save(self.saliences / file_name(config))
        return file_name(config)

    def measure(self, lines: list[Variant]) -> tuple[dict[str, Measurement], dict[str, dict[str, Any]]]:
        """The lines and the float model, side by side; and what each takes."""
        models, facts = {}, {}
        for line in lines:
            models[line.name], facts[line.name] = self.builder.build(line)
        return measure(models, self.reference, self.test, batch=self.batch), facts


_bench: Bench
PRECISION = "high"


def open_bench(args: argparse.Namespace, saliences: Path) -> None:
    global _bench
    torch.set_num_threads(args.threads)
    # A GPU's float32 products as TF32: an eighth of the time, and a KL of some millionths.
    torch.set_float32_matmul_precision(PRECISION)
    _bench = Bench(args, saliences)


def run_score(config: QuantConfig) -> str:
    return _bench.score(config)


def run_measure(lines: list[Variant]) -> tuple[dict[str, Measurement], dict[str, dict[str, Any]]]:
    return _bench.measure(lines)


def shared(args: argparse.Namespace) -> dict[str, Any]:
    """The QuantConfig fields that are the same in all lines."""
    return {"calibration": args.calibration, "samples": args.samples, "window": args.window}


def tuning(args: argparse.Namespace) -> dict[str, Any]:
    """What all lines with tuned scales see: fields of the config that opens the job."""
    if args.tune_text is None and args.tune_samples is None:
        return {}
    return {"tune": 1, "tune_text": args.tune_text, "tune_samples": args.tune_samples}


def main() -> None:
    args = arguments()
    wanted = chosen(variants(shared(args)), args.only)
    began = time.monotonic()
    open_source(args.model)  # a GGUF file is converted once, before the processes read it
    measured: dict[str, Measurement] = {}
    facts: dict[str, dict[str, Any]] = {}
    with (
        TemporaryDirectory(dir=args.work)
        if args.saliences is None
        else nullcontext(args.saliences) as saliences,
        ProcessPoolExecutor(
            args.processes, get_context("spawn"), open_bench, (args, Path(saliences))
        ) as pool,
    ):
        missing = [
            config for config in to_score(wanted) if not (Path(saliences) / file_name(config)).exists()
        ]
        for done in as_completed([pool.submit(run_score, config) for config in missing]):
            print(f"{time.monotonic() - began:.0f} s: salience {done.result()}", flush=True)
        for done in as_completed(
            [pool.submit(run_measure, lines) for lines in shares(wanted, args.together)]
        ):
            found, takes = done.result()
            measured, facts = measured | found, facts | takes
            said = ", ".join(f"{name}: KL {float(found[name].kl.mean()):.4f}" for name in takes)
            print(f"{time.monotonic() - began:.0f} s: {said}", flush=True)
            write(args, in_order(measured, wanted), facts, time.monotonic() - began)
    print(table(result(args, in_order(measured, wanted), facts, time.monotonic() - began)))


def chosen(lines: list[Variant], only: list[str] | None) -> list[Variant]:
    """The lines in the order of `only`: a line's name, or a text for all lines whose names contain it."""
    names = {v.name for v in lines}
    matching = [
        v for text in only or [""] for v in lines if v.name == text or (text not in names and text in v.name)
    ]
    return list({v.name: v for v in matching}.values())


def to_score(wanted: list[Variant]) -> list[QuantConfig]:
    """One config for each salience that the lines need, at all widths that any of them has."""
    configs = [config for v in wanted for config in (v.config, v.equal) if config is not None]
    found: dict[str, QuantConfig] = {}
    for config in configs:
        if not is_uniform(config):
            before = found.get(file_name(config), config)
            widths = tuple(sorted({*before.widths, *config.widths}))
            found[file_name(config)] = config.model_copy(update={"widths": widths})
    return list(found.values())


def shares(wanted: list[Variant], together: int) -> list[list[Variant]]:
    """Lines to make and measure at once: those that share a rounding, of `together` roundings."""
    alike: dict[str, list[Variant]] = {}
    for v in wanted:
        rounding = v.name if v.config is None or v.equal is not None else v.config.model_dump_json()
        alike.setdefault(rounding, []).append(v)
    rest = list(alike.values())
    cut = [rest[start : start + together] for start in range(0, len(rest), together)]
    return [[v for group in groups for v in group] for groups in cut]


def in_order(measured: dict[str, Measurement], wanted: list[Variant]) -> dict[str, Measurement]:
    """The float model, then the lines as they were asked for."""
    return {name: measured[name] for name in (REFERENCE, *(v.name for v in wanted)) if name in measured}


def by_window(found: Measurement) -> dict[str, str]:
    """What accuracy_join.py pairs lines of several runs by: a line of numbers a figure."""
    return {
        key: " ".join(f"{value:.6f}" for value in getattr(found, key).tolist())
        for key in ("nll", "kl", "top1")
    }


def result(
    args: argparse.Namespace,
    measured: dict[str, Measurement],
    facts: dict[str, dict[str, Any]],
    seconds: float,
) -> dict[str, Any]:
    rows = [
        {"name": name, **facts.get(name, {}), **found.to_json(), "by_window": by_window(found)}
        for name, found in measured.items()
    ]
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "model": args.label or args.model,
        "calibration": f"{args.samples} windows of {args.window} of {Path(args.calibration).name}",
        "tuning": f"{args.tune_samples or args.samples} windows of {args.window} of "
        f"{Path(args.tune_text or args.calibration).name}",
        "text": Path(args.text).name,
        "window": args.window,
        "device": torch.cuda.get_device_name() if args.device == "cuda" else platform.machine(),
        "backend": args.backend,
        "float32_matmul_precision": PRECISION,
        "versions": {package: version(package) for package in ("torch", "transformers")},
        "date": time.strftime("%Y-%m-%d"),
        "commit": args.commit or ("unknown" if commit.returncode else commit.stdout.strip()),
        "seconds": round(seconds),
        "rows": rows,
        "claims": claims(measured),
    }


def write(
    args: argparse.Namespace,
    measured: dict[str, Measurement],
    facts: dict[str, dict[str, Any]],
    seconds: float,
) -> None:
    if args.json:
        Path(args.json).write_text(json.dumps(result(args, measured, facts, seconds), indent=1) + "\n")


def arguments() -> argparse.Namespace:
    parser = shared_arguments(__doc__)
    parser.add_argument(
        "--together",
        type=int,
        default=3,
        help="roundings that are measured beside one run of the float model",
    )
    parser.add_argument(
        "--saliences", help="a directory that keeps saliences; one that is there is not measured again"
    )
    parser.add_argument("--processes", type=int, default=1, help="lines that are made at once")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads of each")
    return parsed(parser)


if __name__ == "__main__":
    main()
