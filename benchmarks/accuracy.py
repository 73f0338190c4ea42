"""Accuracy of every choice mixllm makes, on one model, calibrated on one text and measured on another.

    python benchmarks/accuracy.py MODEL --calibration TRAIN --text TEST --json FILE [--device cuda] [--workers 6]

Prints and writes a table: float; W4 and W8 by RTN, clip search, GPTQ and all together, with and without
int8 activations; global, local and random choice of the 8-bit rows at several budgets, in both profiles.
Perplexity as GPTQ's papers measure it, mean KL divergence and top-1 agreement against the float model,
and differences with standard errors paired over windows. Workers share the variants between processes.
"""

from __future__ import annotations

import argparse
import copy
import json
import multiprocessing
import platform
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from mixllm.config import PROFILES, Format, QuantConfig
from mixllm.data import load_text, windows
from mixllm.evaluate import Measurement, measure, paired_difference
from mixllm.kernels.activations import fake_quantize
from mixllm.nn import MixLinear
from mixllm.pipeline import Job, make_plan, open_job, score, sizes
from mixllm.progress import Silent
from mixllm.rotation import rotate
from mixllm.rounding.walk import round_model
from mixllm.salience_file import Salience

METHODS = {
    "RTN": {"rounding": "rtn", "clip": False},
    "clip": {"rounding": "rtn", "clip": True},
    "GPTQ": {"rounding": "gptq", "clip": False, "order": False},
    "GPTQ+order+clip": {"rounding": "gptq", "clip": True, "order": True},
}
BUDGETS: list[dict[str, float]] = [{"channels": 10}, {"channels": 20}, {"channels": 50}, {"bits": 4.4}, {"bits": 4.8}]
# The paper's own salience, and the one that mixllm uses by default.
PAPER_SCORE = {"score": "taylor", "error": "rtn"}
OUR_SCORE = {"score": "fisher", "error": "gptq"}


@dataclass(frozen=True)
class Variant:
    """One line of the table. config None: float weights; activations: bits of the activations, 8 or 16."""

    name: str
    config: QuantConfig | None
    activations: int
    format: Format | None = None


def variants(base: dict[str, Any]) -> list[Variant]:
    """base: QuantConfig fields that all share (calibration, samples, window)."""
    found = [Variant(f"float, A8 {name}", None, 8, format) for name, format in PROFILES.items()]
    for bits in (4, 8):
        for method, fields in METHODS.items():
            config = QuantConfig(format=PROFILES["paper"], bits=bits, **fields, **base)
            found += [Variant(f"paper W{bits}A{a} {method}", config, a) for a in (16, 8)]
        found.append(Variant(f"fast W{bits}A8", QuantConfig(format=PROFILES["fast"], bits=bits, **base), 8))
        found.append(Variant(f"fast W{bits}A16", QuantConfig(format=PROFILES["fast"], bits=bits, **base), 16))
    for profile, format in PROFILES.items():
        for budget in BUDGETS:
            for scope in ("global", "local", "random"):
                for label, fields in (("S", PAPER_SCORE), ("F", OUR_SCORE)):
                    # The paper's rule with the paper's score; true bits with ours. Random needs neither twice.
                    if label == ("S" if "bits" in budget else "F"):
                        continue
                    config = QuantConfig(format=format, scope=scope, **budget, **fields, **base)
                    text = f"{budget['bits']} bits" if "bits" in budget else f"{budget['channels']} % channels"
                    found.append(Variant(f"{profile} {text} {scope}", config, 8))
    return found


class FloatWeightsA8(nn.Module):
    """A float linear layer that sees its inputs as int8 would leave them."""

    def __init__(self, linear: nn.Linear, format: Format) -> None:
        super().__init__()
        weight = rotate(linear.weight) if format.rotation == "hadamard" else linear.weight
        self.weight, self.bias, self.format = weight.detach(), linear.bias, format

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(fake_quantize(x, self.format), self.weight.to(x.dtype), self.bias)


@torch.no_grad()
def build(variants: list[Variant], job: Job, reference: nn.Module, saliences: Path) -> tuple[dict[str, nn.Module], dict[str, Any]]:
    """The variants as models, and what each takes. Variants that differ only in activations share a rounding."""
    models, facts = {}, {}
    rounded: dict[str, Any] = {}
    for variant in variants:
        model = models[variant.name] = copy.deepcopy(reference)
        config = variant.config
        if config is None:
            assert variant.format is not None
            for name in job.shapes:
                model.set_submodule(name, FloatWeightsA8(model.get_submodule(name), variant.format))
            continue
        plan = make_plan(job, config, load_salience(config, saliences))
        size = sizes(plan, config)
        facts[variant.name] = {
            "payload_bits": size.payload_bits, "bits": size.bits, "bytes": size.checkpoint_bytes,
            "rows8_percent": size.total.percent, "by_kind": {k: s.percent for k, s in size.by_kind.items()},
        }  # fmt: skip
        key = config.model_dump_json()
        if key not in rounded:
            widths = {name: module.widths for name, module in plan.modules.items()}
            walk = round_model(job.decoder, job.ids, widths, config, batch=job.batch, progress=Silent())
            rounded = {key: dict(walk)}
        for name, layer in rounded[key].items():
            old = model.get_submodule(name)
            if variant.activations == 8:
                model.set_submodule(name, MixLinear.from_rounded(layer, config.format, old.bias))
            else:
                weight = layer.dequantize()
                old.weight.data = rotate(weight) if config.format.rotation == "hadamard" else weight
    return models, facts


def salience_path(config: QuantConfig, directory: Path) -> Path:
    return directory / f"{config.format.weight_scale}-{config.score}-{config.error}.safetensors"


def load_salience(config: QuantConfig, directory: Path) -> Salience | None:
    return None if config.bits in (4, 8) else Salience.load(salience_path(config, directory))


def prepare_salience(args: argparse.Namespace, config: QuantConfig, directory: Path) -> None:
    job = open_job(args.model, config, device=args.device, dtype="float32", work=Path(args.work))
    score(job, config).save(salience_path(config, directory))


def run_share(args: argparse.Namespace, share: list[Variant], base: dict[str, Any], directory: Path, i: int) -> None:
    """Measure some variants and leave {name: measurement per window, facts} in directory/i.pt."""
    torch.set_num_threads(max(1, torch.get_num_threads() // args.workers))
    job = open_job(args.model, QuantConfig(**base), device=args.device, dtype="float32", work=Path(args.work))
    device = job.decoder.device
    reference = AutoModelForCausalLM.from_pretrained(job.source.path, dtype=torch.float32).to(device).eval()
    tokenizer = AutoTokenizer.from_pretrained(job.source.path)
    test = windows(load_text(args.text), tokenizer, args.window, args.windows)
    done: dict[str, tuple[Measurement, Any]] = {}
    for start in range(0, len(share), args.together):
        part = share[start : start + args.together]
        began = time.monotonic()
        models, facts = build(part, job, reference, directory)
        built = time.monotonic()
        for name, measurement in measure(models, reference, test.to(device)).items():
            done[name] = measurement, facts.get(name)
        print(f"{[v.name for v in part]}: built {built - began:.0f} s, measured {time.monotonic() - built:.0f} s", flush=True)
        del models
    torch.save(done, directory / f"{i}.pt")


def main() -> None:
    args = arguments()
    base = {"calibration": args.calibration, "samples": args.samples, "window": args.window}
    wanted = [v for v in variants(base) if not args.only or any(text in v.name for text in args.only)]
    began = time.monotonic()
    spawn = multiprocessing.get_context("spawn")
    with TemporaryDirectory(prefix="accuracy-") as name:
        directory = Path(name)
        open_job(args.model, QuantConfig(**base), device="cpu", dtype="float32", work=Path(args.work))
        configs = {salience_path(v.config, directory): v.config for v in wanted if v.config and v.config.bits not in (4, 8)}
        run(spawn, [(prepare_salience, (args, config, directory)) for config in configs.values()])
        # Neighbours in the list share roundings: keep pairs together, spread the rest evenly.
        pairs = [wanted[i : i + 2] for i in range(0, len(wanted), 2)]
        shares = [[v for pair in pairs[i :: args.workers] for v in pair] for i in range(args.workers)]
        run(spawn, [(run_share, (args, share, base, directory, i)) for i, share in enumerate(shares) if share])
        done: dict[str, tuple[Measurement, Any]] = {}
        for file in directory.glob("*.pt"):
            done.update(torch.load(file, weights_only=False))
    write(args, ["float", *(v.name for v in wanted)], done, time.monotonic() - began)


def run(spawn: Any, tasks: list[tuple[Any, tuple[Any, ...]]]) -> None:
    processes = [spawn.Process(target=target, args=arguments) for target, arguments in tasks]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        sys.exit("accuracy: a worker failed; its error is above")


# (better, worse, what it shows): differences that must exceed two paired standard errors.
CLAIMS = [
    *((f"{p} {b} bits global", f"{p} {b} bits local", "global beats local at equal bits") for p in PROFILES for b in (4.4, 4.8)),
    *((f"{p} {b} bits local", f"{p} {b} bits random", "local beats random at equal bits") for p in PROFILES for b in (4.4, 4.8)),
    ("paper W4A16 GPTQ+order+clip", "paper W4A16 RTN", "GPTQ with order and clip beats RTN"),
    ("paper W4A8 GPTQ+order+clip", "paper W4A8 RTN", "GPTQ with order and clip beats RTN"),
    ("fast 4.4 bits global", "paper 10 % channels global", "fast at 4.4 bits beats the paper at 10 % of channels"),
]


def write(args: argparse.Namespace, names: list[str], done: dict[str, tuple[Measurement, Any]], seconds: float) -> None:
    rows = []
    for name in names:
        measurement, facts = done[name]
        rows.append({"name": name, **(facts or {}), **measurement.to_json()})
    claims = []
    for better, worse, text in CLAIMS:
        if better in done and worse in done:
            a, b = done[better][0], done[worse][0]
            nll, kl = paired_difference(b.nll, a.nll), paired_difference(b.kl, a.kl)
            claims.append({"claim": text, "better": better, "worse": worse, "nll": nll, "kl": kl, "holds": all(mean > 2 * error for mean, error in (nll, kl))})
    gpu = torch.cuda.get_device_name() if args.device == "cuda" else platform.processor() or platform.machine()
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    result = {
        "model": args.label or args.model, "calibration": f"{args.samples} windows of {args.window} of {Path(args.calibration).name}",
        "text": Path(args.text).name, "window": args.window, "windows": len(done["float"][0].nll), "device": gpu,
        "versions": {package: version(package) for package in ("torch", "transformers")}, "date": time.strftime("%Y-%m-%d"),
        "commit": args.commit or commit, "seconds": round(seconds), "rows": rows, "claims": claims,
    }  # fmt: skip
    if args.json:
        Path(args.json).write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))


def table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    lines = ["| format and choice | payload bits | bits | perplexity | KL | top-1 % |", "|---|---|---|---|---|---|"]
    for row in result["rows"]:
        bits = [f"{row[key]:.2f}" if key in row else "16" for key in ("payload_bits", "bits")]
        lines.append(
            f"| {row['name']} | {' | '.join(bits)} | {row['perplexity']:.3f} | {row['kl']:.4f} +- {row['kl_error']:.4f} | {100 * row['top1']:.2f} |"
        )
    for claim in result["claims"]:
        (nll, nll_error), (kl, kl_error) = claim["nll"], claim["kl"]
        verdict = "holds" if claim["holds"] else "DOES NOT HOLD"
        lines.append(
            f"{claim['better']} against {claim['worse']}: {claim['claim']}: {verdict}, NLL {nll:.4f} +- {nll_error:.4f}, KL {kl:.4f} +- {kl_error:.4f}"
        )
    return "\n".join(lines)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="directory, hub name or GGUF file")
    parser.add_argument("--calibration", required=True)
    parser.add_argument("--text", required=True)
    parser.add_argument("--window", type=int, default=2048)
    parser.add_argument("--windows", type=int, help="how many windows of the text to measure; all of them without")
    parser.add_argument("--samples", type=int, default=64, help="calibration windows")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--together", type=int, default=4, help="models in memory at once, a worker")
    parser.add_argument("--work", default=".work", help="where a GGUF file's conversion is kept")
    parser.add_argument("--only", nargs="*", help="only variants whose names contain one of these")
    parser.add_argument("--label", help="the model's name in the result")
    parser.add_argument("--commit", help="the commit to state, where there is no repository")
    parser.add_argument("--json")
    args = parser.parse_args()
    Path(args.work).mkdir(parents=True, exist_ok=True)
    return args


if __name__ == "__main__":
    main()
