"""Accuracy of every choice mixllm makes, on one model, calibrated on one text and measured on another.

    python benchmarks/accuracy.py MODEL --calibration TRAIN --text TEST --json FILE [--device cuda]

Prints and writes a table: float; W4 and W8 by RTN, clip search, GPTQ and all together, with and without
int8 activations; global, local and random choice of the 8-bit rows at several budgets, in both profiles.
Perplexity as GPTQ's papers measure it, mean KL divergence and top-1 agreement against the float model,
and differences with standard errors paired over windows. FILE is written anew after every few lines of
the table, so a run that is cut leaves what it had.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import subprocess
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer

from mixllm.config import PROFILES, Format, QuantConfig, Scope
from mixllm.data import load_text, windows
from mixllm.evaluate import Measurement, measure, paired_difference
from mixllm.format.rounded import Rounded
from mixllm.kernels import Backend
from mixllm.kernels.activations import fake_quantize
from mixllm.nn import MixLinear
from mixllm.pipeline import Job, is_uniform, make_plan, open_job, score, sizes
from mixllm.placement import load_float
from mixllm.plan import Plan
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
BUDGETS: list[dict[str, float]] = [
    {"channels": 10},
    {"channels": 20},
    {"channels": 50},
    {"bits": 4.4},
    {"bits": 4.8},
]
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
    found += [mixed("fast", {"bits": 4.4}, "global", base), mixed("paper", {"channels": 10}, "global", base)]
    for bits in (4, 8):
        for method, fields in reversed(METHODS.items()):
            config = QuantConfig(format=PROFILES["paper"], bits=bits, **fields, **base)
            found += [Variant(f"paper W{bits}A{a} {method}", config, a) for a in (16, 8)]
        config = QuantConfig(format=PROFILES["fast"], bits=bits, **base)
        found += [Variant(f"fast W{bits}A{a} GPTQ+order+clip", config, a) for a in (16, 8)]
    scopes: tuple[Scope, ...] = ("global", "local", "random")
    found += [mixed("paper", budget, scope, base) for budget in reversed(BUDGETS) for scope in scopes]
    found += [
        mixed("fast", budget, scope, base) for budget in ({"bits": 4.4}, {"bits": 4.8}) for scope in scopes
    ]
    return list({variant.name: variant for variant in found}.values())


def mixed(profile: str, budget: dict[str, float], scope: Scope, base: dict[str, Any]) -> Variant:
    """4- and 8-bit rows: the paper's rule with the paper's score, true bits with mixllm's own."""
    score = PAPER_SCORE if "channels" in budget else OUR_SCORE
    fields = {"format": PROFILES[profile], "scope": scope, **budget, **score, **base}
    text = f"{budget['bits']} bits" if "bits" in budget else f"{budget['channels']} % channels"
    return Variant(f"{profile} {text} {scope}", QuantConfig.model_validate(fields), 8)


class FloatWeightsA8(nn.Module):
    """A float linear layer that sees its inputs as int8 would leave them."""

    def __init__(self, linear: nn.Linear, format: Format) -> None:
        super().__init__()
        weight = rotate(linear.weight) if format.rotation == "hadamard" else linear.weight
        self.weight, self.bias, self.format = weight.detach(), linear.bias, format

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(fake_quantize(x, self.format), self.weight.to(x.dtype), self.bias)


class Builder:
    """Makes variants of one model; those that differ only in their activations share a rounding."""

    def __init__(self, job: Job, reference: nn.Module, backend: Backend) -> None:
        self.job, self.reference, self.backend = job, reference, backend
        self.saliences: dict[tuple[str, str, str], Salience] = {}
        self.rounded: dict[str, dict[str, Rounded]] = {}

    @torch.no_grad()
    def build(self, variant: Variant) -> tuple[nn.Module, dict[str, Any]]:
        """The variant as a model, and what it takes (nothing to say of float weights)."""
        model = copy.deepcopy(self.reference)
        config = variant.config
        if config is None:
            assert variant.format is not None
            for name in self.job.shapes:
                model.set_submodule(name, FloatWeightsA8(model.get_submodule(name), variant.format))
            return model, {}
        plan = make_plan(self.job, config, None if is_uniform(config) else self.salience(config))
        for name, layer in self.round(plan, config).items():
            old = model.get_submodule(name)
            if variant.activations == 8:
                layer_a8 = MixLinear.from_rounded(layer, config.format, old.bias)
                layer_a8.backend = self.backend
                model.set_submodule(name, layer_a8)
            else:
                weight = layer.dequantize()
                old.weight.data = rotate(weight) if config.format.rotation == "hadamard" else weight
        size = sizes(plan, config)
        return model, {
            "payload_bits": size.payload_bits,
            "bits": size.bits,
            "bytes": size.checkpoint_bytes,
            "rows8_percent": size.total.percent,
            "rows8_percent_by_kind": {kind: share.percent for kind, share in size.by_kind.items()},
        }

    def salience(self, config: QuantConfig) -> Salience:
        key = config.format.weight_scale, config.score, config.error
        if key not in self.saliences:
            self.saliences[key] = score(self.job, config)
        return self.saliences[key]

    def round(self, plan: Plan, config: QuantConfig) -> dict[str, Rounded]:
        key = config.model_dump_json()
        if key not in self.rounded:
            widths = {name: module.widths for name, module in plan.modules.items()}
            walk = round_model(
                self.job.decoder, self.job.ids, widths, config, batch=self.job.batch, progress=Silent()
            )
            self.rounded = {key: dict(walk)}
        return self.rounded[key]


def main() -> None:
    args = arguments()
    base = {"calibration": args.calibration, "samples": args.samples, "window": args.window}
    wanted = [v for v in variants(base) if not args.only or any(text in v.name for text in args.only)]
    began = time.monotonic()
    job = open_job(args.model, QuantConfig(**base), device=args.device, dtype="float32", work=Path(args.work))
    reference = load_float(job.source, job.decoder.device, torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(job.source.path)
    test = windows(load_text(args.text), tokenizer, args.window, args.windows).to(job.decoder.device)
    builder = Builder(job, reference, args.backend)
    measured: dict[str, Measurement] = {}
    facts: dict[str, dict[str, Any]] = {}
    for start in range(0, len(wanted), args.together):
        models = {}
        for variant in wanted[start : start + args.together]:
            models[variant.name], facts[variant.name] = builder.build(variant)
            print(f"{time.monotonic() - began:.0f} s: made {variant.name}", flush=True)
        measured |= measure(models, reference, test, batch=args.batch)
        write(args, measured, facts, time.monotonic() - began)
    print(table(result(args, measured, facts, time.monotonic() - began)))


# (better, worse, what it shows): differences that must exceed two paired standard errors.
CLAIMS = [
    *(
        (f"{p} {b} bits global", f"{p} {b} bits local", "global beats local at equal bits")
        for p in PROFILES
        for b in (4.4, 4.8)
    ),
    *(
        (f"{p} {b} bits local", f"{p} {b} bits random", "local beats random at equal bits")
        for p in PROFILES
        for b in (4.4, 4.8)
    ),
    ("paper W4A16 GPTQ+order+clip", "paper W4A16 RTN", "GPTQ with order and clip beats RTN"),
    ("paper W4A8 GPTQ+order+clip", "paper W4A8 RTN", "GPTQ with order and clip beats RTN"),
    (
        "fast 4.4 bits global",
        "paper 10 % channels global",
        "fast at 4.4 bits beats the paper at 10 % of channels",
    ),
]


def result(
    args: argparse.Namespace,
    measured: dict[str, Measurement],
    facts: dict[str, dict[str, Any]],
    seconds: float,
) -> dict[str, Any]:
    rows = [{"name": name, **facts.get(name, {}), **found.to_json()} for name, found in measured.items()]
    claims = []
    for better, worse, text in CLAIMS:
        if better in measured and worse in measured:
            a, b = measured[better], measured[worse]
            nll, kl = paired_difference(b.nll, a.nll), paired_difference(b.kl, a.kl)
            holds = all(mean > 2 * error for mean, error in (nll, kl))
            claims.append(
                {"claim": text, "better": better, "worse": worse, "nll": nll, "kl": kl, "holds": holds}
            )
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "model": args.label or args.model,
        "calibration": f"{args.samples} windows of {args.window} of {Path(args.calibration).name}",
        "text": Path(args.text).name,
        "window": args.window,
        "device": torch.cuda.get_device_name() if args.device == "cuda" else platform.machine(),
        "backend": args.backend,
        "versions": {package: version(package) for package in ("torch", "transformers")},
        "date": time.strftime("%Y-%m-%d"),
        "commit": args.commit or ("unknown" if commit.returncode else commit.stdout.strip()),
        "seconds": round(seconds),
        "rows": rows,
        "claims": claims,
    }


def write(
    args: argparse.Namespace,
    measured: dict[str, Measurement],
    facts: dict[str, dict[str, Any]],
    seconds: float,
) -> None:
    if args.json:
        Path(args.json).write_text(json.dumps(result(args, measured, facts, seconds), indent=1) + "\n")


def table(found: dict[str, Any]) -> str:
    """The result as Markdown."""
    lines = [
        "| format and choice | payload bits | bits | perplexity | KL | top-1 % |",
        "|---|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        bits = [f"{row[key]:.2f}" if key in row else "16" for key in ("payload_bits", "bits")]
        kl, top1 = f"{row['kl']:.4f} +- {row['kl_error']:.4f}", f"{100 * row['top1']:.2f}"
        lines.append("| " + " | ".join([row["name"], *bits, f"{row['perplexity']:.3f}", kl, top1]) + " |")
    for claim in found["claims"]:
        differences = ", ".join(
            f"{name.upper()} {mean:.4f} +- {error:.4f}"
            for name in ("nll", "kl")
            for mean, error in [claim[name]]
        )
        verdict = "holds" if claim["holds"] else "DOES NOT HOLD"
        lines.append(
            f"{claim['better']} against {claim['worse']}: {claim['claim']}: {verdict}, {differences}"
        )
    return "\n".join(lines)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="directory, hub name or GGUF file")
    parser.add_argument("--calibration", required=True)
    parser.add_argument("--text", required=True)
    parser.add_argument("--window", type=int, default=2048)
    parser.add_argument(
        "--windows", type=int, help="how many windows of the text to measure; all of them without"
    )
    parser.add_argument("--samples", type=int, default=64, help="calibration windows")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--backend", default="auto", choices=get_args(Backend), help="of the mixed layers")
    parser.add_argument("--together", type=int, default=4, help="models in memory at once")
    parser.add_argument("--batch", type=int, default=1, help="windows that go through a model at once")
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
