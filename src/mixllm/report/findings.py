"""All that a report says, gathered from what a checkpoint keeps: its --json, and what its page shows."""

from __future__ import annotations

import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mixllm.config import PROFILES, Format, QuantConfig, parse, typed
from mixllm.errors import MixllmError
from mixllm.files import read_json
from mixllm.format.config import read_config
from mixllm.format.shards import find_shards
from mixllm.format.validate import validate_headers
from mixllm.plan import Plan, Salience, report
from mixllm.plan.report import depth_of, kind_of
from mixllm.records import LAYERS, PLAN, PREDICTED, SALIENCE, SUMMARY
from mixllm.report.curve import Point, curve, point, predicted
from mixllm.report.measured import Measured
from mixllm.report.samples import Sample
from mixllm.report.store import read_measured


@dataclass(frozen=True)
class Layer:
    """One quantized layer; None where it was not measured.

    wide_percent: share of its rows of more than 4 bits. narrow_loss: predicted rise of the loss, nats a
    token, with all rows at the narrowest; loss: with the widths chosen. error: relative output error that
    rounding made; peak_over_mean: max |x| / mean |x| of its inputs.
    """

    name: str
    depth: int
    kind: str
    wide_percent: float
    narrow_loss: float | None
    loss: float | None
    error: float | None
    peak_over_mean: float | None


@dataclass(frozen=True)
class Sizes:
    """See mixllm.plan.Report; checkpoint_bytes as they lie on disk."""

    weights: int
    payload_bits: float
    bits: float
    checkpoint_bytes: int
    other_bytes: int
    rows: dict[int, int]
    wide_percent: float
    wide_percent_by_kind: dict[str, float]
    wide_percent_by_depth: dict[int, float]


@dataclass(frozen=True)
class Made:
    """How the checkpoint was made; seconds by stage."""

    model: str
    command: str
    calibration: str
    device: str
    date: str
    versions: dict[str, str]
    seconds: dict[str, float]


@dataclass(frozen=True)
class Findings:
    """The report's figures. curve, chosen: None without salience; measured, predicted: None where not there.

    predicted: what benchmarks/predicted.py wrote: pairs of predicted and measured loss of random plans.
    """

    name: str
    widths: list[int]
    choice: str
    sizes: Sizes
    layers: list[Layer]
    curve: list[Point] | None
    chosen: Point | None
    measured: Measured | None
    samples: list[Sample]
    predicted: dict[str, Any] | None
    made: Made

    def to_json(self) -> dict[str, Any]:
        """Plain values under the fields' names."""
        plain = asdict(self)
        plain["measured"] = None if self.measured is None else self.measured.model_dump()
        plain["samples"] = [sample.model_dump() for sample in self.samples]
        return plain


def gather(out: Path) -> Findings:
    """Read what a checkpoint directory keeps in mixllm/.

    Raises MixllmError where `out` is no directory that mixllm quantize wrote, or its files are not whole.
    """
    if not out.exists():
        raise MixllmError(f"{out}: no such directory; give one that mixllm quantize wrote")
    if not (out / SUMMARY).is_file():
        raise MixllmError(f"{out}: keeps no {SUMMARY}; give a directory that mixllm quantize wrote")
    format, modules = read_config(out)
    validate_headers(find_shards(out), format, modules)
    summary, plan = read_json(out / SUMMARY), Plan.load(out / PLAN)
    salience = Salience.load(out / SALIENCE) if (out / SALIENCE).is_file() else None
    measured, samples = read_measured(out)
    return Findings(
        name=out.resolve().name,
        widths=list(plan.widths),
        choice=_choice(plan),
        sizes=_sizes(out, plan),
        layers=_layers(out, plan, salience),
        curve=None if salience is None else curve(salience),
        chosen=None if salience is None else point(plan, salience),
        measured=measured,
        samples=samples,
        predicted=read_json(out / PREDICTED) if (out / PREDICTED).is_file() else None,
        made=_made(summary, str(out / SUMMARY)),
    )


def _choice(plan: Plan) -> str:
    if plan.score is None:
        return f"{plan.budget:g} bits for every row"
    budget = f"{plan.budget:g} bits" if plan.rule == "bits" else f"{plan.budget:g} % of channels"
    seed = f", seed {plan.seed}" if plan.scope == "random" else ""
    return f"{budget}, {plan.scope}{seed}, {plan.score} of {plan.error} errors"


def _sizes(out: Path, plan: Plan) -> Sizes:
    found = report(plan.counts(), plan.format, plan.other_bytes)
    return Sizes(
        weights=found.weights,
        payload_bits=found.payload_bits,
        bits=found.bits,
        checkpoint_bytes=sum(file.stat().st_size for file in out.glob("*.safetensors")),
        other_bytes=found.other_bytes,
        rows=found.rows,
        wide_percent=found.total.percent,
        wide_percent_by_kind={kind: share.percent for kind, share in found.by_kind.items()},
        wide_percent_by_depth={depth: share.percent for depth, share in found.by_depth.items()},
    )


def _layers(out: Path, plan: Plan, salience: Salience | None) -> list[Layer]:
    seen = read_json(out / LAYERS) if (out / LAYERS).is_file() else {}
    losses = {} if salience is None else predicted(plan, salience)
    layers = []
    for name, module in plan.modules.items():
        facts = seen.get(name, {})
        narrow = None if salience is None else salience.modules[name].loss[plan.widths[0]]
        mean = facts.get("mean")
        layers.append(
            Layer(
                name=name,
                depth=depth_of(name),
                kind=kind_of(name),
                wide_percent=100 * float((module.widths > 4).double().mean()),
                narrow_loss=None if narrow is None else float(narrow.double().sum()),
                loss=losses.get(name),
                error=facts.get("error"),
                peak_over_mean=facts["peak"] / mean if mean else None,
            )
        )
    return layers


def _made(summary: dict[str, Any], where: str) -> Made:
    try:
        config = parse(QuantConfig, summary["config"], where)
        text = config.calibration.rpartition("/")[2]
        return Made(
            model=summary["model"],
            command=command(summary["model"], Path(summary["out"]).name, config),
            calibration=f"{config.samples} windows of {config.window} tokens of {text}",
            device=summary["device"],
            date=summary["date"],
            versions=summary["versions"],
            seconds=summary["seconds"],
        )
    except KeyError as error:
        raise MixllmError(f"{where}: {error.args[0]} is missing; quantize the model again") from None


def command(model: str, out: str, config: QuantConfig) -> str:
    """The command line that makes this config from the defaults."""
    profile = next((name for name, format in PROFILES.items() if format == config.format), None)
    words = ["mixllm", "quantize", model, "-o", out, *(["--profile", profile] if profile else [])]
    given = {**_differences(config, QuantConfig(), "format")}
    if profile is None:
        given |= _differences(config.format, Format())
    for name, value in given.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        elif value is not None:
            words += [f"--{flag}", typed(value)]
    return shlex.join(words)


def _differences(config: Any, default: Any, *skipped: str) -> dict[str, Any]:
    values, usual = config.model_dump(), default.model_dump()
    return {name: value for name, value in values.items() if name not in skipped and value != usual[name]}
