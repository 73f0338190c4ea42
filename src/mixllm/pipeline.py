"""The whole job, in order: read, score, plan, round, write. The one place that knows the order."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor

from mixllm.blocks import Decoder, Room
from mixllm.card import new_card
from mixllm.config import WIDTHS, QuantConfig
from mixllm.data import load_text, windows
from mixllm.errors import MixllmError
from mixllm.files import write_json
from mixllm.format.checkpoint import write_checkpoint
from mixllm.format.pack import pack
from mixllm.format.rounded import Rounded
from mixllm.placement import device_name, pick_device, pick_dtype, versions
from mixllm.plan import ModulePlan, Plan, Report, choose, report
from mixllm.progress import JsonLines, Progress, Silent, Together
from mixllm.records import LAYERS, LOG, PLAN, RECORDS, SALIENCE, SUMMARY
from mixllm.rounding.observed import Observed
from mixllm.rounding.walk import round_model
from mixllm.salience import measure_salience
from mixllm.salience_file import ModuleSalience, Salience
from mixllm.source import Source, open_source
from mixllm.tuning import tune_scales

# Enough for full matrix products on each; the boundary states of a batch are small beside its block.
TOKENS_AT_ONCE = {"cuda": 16_384, "cpu": 4_096}


@dataclass(frozen=True)
class Summary:
    """What a run made, and how: `out`, sizes (see mixllm.plan.Report), seconds by stage, the day (UTC) and
    versions. model: as it was given; device: where it was computed."""

    out: str
    model: str
    device: str
    date: str
    versions: dict[str, str]
    config: dict[str, Any]
    report: dict[str, Any]
    seconds: dict[str, float]


@dataclass(frozen=True)
class Job:
    """A model opened for quantization, and its calibration windows int64 [samples, window]."""

    source: Source
    decoder: Decoder
    ids: Tensor

    @property
    def batch(self) -> int:
        """Windows that go through a block at once."""
        return max(1, TOKENS_AT_ONCE[self.decoder.device.type] // self.ids.shape[1])

    @property
    def room(self) -> Room:
        """What boundary states may take in memory."""
        return Room(8 * 10**9, 8 * 10**9)

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """(out_features, in_features) of every linear layer to be quantized, in model order."""
        linears = {
            name: layer for i in range(len(self.decoder)) for name, layer in self.decoder.linears(i).items()
        }
        return {name: (layer.out_features, layer.in_features) for name, layer in linears.items()}


def open_job(
    model: str, config: QuantConfig, *, device: str = "auto", dtype: str = "auto", work: Path
) -> Job:
    """Open `model` (directory, hub name or GGUF) and cut its calibration text into windows.

    device, dtype: where the float blocks run and in what arithmetic (see mixllm.placement).
    """
    from transformers import AutoTokenizer

    where = pick_device(device)
    source = open_source(model, work)
    tokenizer = AutoTokenizer.from_pretrained(source.path)
    texts = load_text(config.calibration)
    ids = windows(texts, tokenizer, config.window, config.samples, config.seed)
    return Job(source, Decoder.open(source, where, pick_dtype(dtype, where, source.config)), ids)


def score(job: Job, config: QuantConfig, progress: Progress | None = None) -> Salience:
    """The salience of every output channel (see mixllm.salience)."""
    with TemporaryDirectory(prefix="mixllm-") as work:
        return measure_salience(
            job.decoder, job.ids, config, work=Path(work), room=job.room, batch=job.batch,
            other_bytes=other_bytes(job), progress=progress or Silent(),
        )  # fmt: skip


def make_plan(job: Job, config: QuantConfig, salience: Salience | None) -> Plan:
    """Spend the config's budget. salience may be None where the budget leaves no choice (see is_uniform)."""
    if is_uniform(config):
        return Plan.uniform(job.shapes, round(config.bits or 0), config.format, other_bytes(job))
    assert salience is not None
    plan = choose(salience, bits=config.bits, channels=config.channels, scope=config.scope, seed=config.seed)
    return replace(plan, format=config.format)


def is_uniform(config: QuantConfig) -> bool:
    """Whether every row gets one width, so that there is nothing to choose and no salience to measure."""
    return config.bits in WIDTHS


def write_quantized(
    job: Job,
    plan: Plan,
    config: QuantConfig,
    out: Path,
    progress: Progress | None = None,
    seen: dict[str, Observed] | None = None,
) -> None:
    """Round by the plan and fill the existing directory `out` with the checkpoint; seen: see round_model."""
    rounded = rounded_layers(job, plan, config, progress, seen)
    packed = ((name, pack(layer, config.format)) for name, layer in rounded)
    write_checkpoint(out, job.source, config.format, packed)


def rounded_layers(
    job: Job,
    plan: Plan,
    config: QuantConfig,
    progress: Progress | None = None,
    seen: dict[str, Observed] | None = None,
) -> Iterator[tuple[str, Rounded]]:
    """Every linear layer rounded by the plan and, after GPTQ, tuned: (full name, Rounded), in model order."""
    progress = progress or Silent()
    widths = {name: module.widths for name, module in plan.modules.items()}
    with TemporaryDirectory(prefix="mixllm-") as work:
        walk = round_model(
            job.decoder, job.ids, widths, config, work=Path(work), room=job.room, batch=job.batch,
            progress=progress, seen=seen,
        )  # fmt: skip
        if config.rounding != "gptq" or not config.tune:
            yield from walk
            return
        layers = dict(walk)
    tuned = tune_scales(
        job.decoder, job.ids, layers, config.format, epochs=config.tune, seed=config.seed, progress=progress
    )
    yield from tuned.items()


def quantize(
    model: str,
    out: str | Path,
    config: QuantConfig | None = None,
    *,
    device: str = "auto",
    dtype: str = "auto",
    plan: str | Path | None = None,
    salience: str | Path | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Summary:
    """Quantize `model` into the directory `out`, which appears only when it is whole.

    plan: a plan file to follow instead of choosing; salience: a salience file to choose from instead of
    measuring. Both, and the summary, are kept in out/mixllm. Raises MixllmError for what the user gave.
    """
    config, out = config or QuantConfig(), Path(out)
    clock = _Clock()
    with _staging(out, overwrite) as stage:
        (stage / RECORDS).mkdir()
        with (stage / LOG).open("w", encoding="utf-8") as log:
            told = Together(progress or Silent(), JsonLines(log))
            with clock("open"):
                job = open_job(model, config, device=device, dtype=dtype, work=out.parent)
            with clock("salience"):
                chosen, scores = _plan(job, config, plan, salience, told)
            if scores is not None:
                scores.save(stage / SALIENCE)
            chosen.save(stage / PLAN)
            with clock("round"):
                seen: dict[str, Observed] = {}
                write_quantized(job, chosen, config, stage, told, seen)
            write_json(stage / LAYERS, {name: asdict(layer) for name, layer in seen.items()})
        summary = Summary(
            out=str(out),
            model=model,
            device=device_name(job.decoder.device),
            date=time.strftime("%Y-%m-%d", time.gmtime()),
            versions=versions(),
            config=config.model_dump(),
            report=asdict(sizes(chosen, config)),
            seconds=clock.seconds,
        )
        write_json(stage / SUMMARY, asdict(summary))
        new_card(stage, job.source.path, model)
    return summary


def sizes(plan: Plan, config: QuantConfig) -> Report:
    """What a checkpoint made by this plan in this config's format takes."""
    return report(plan.counts(), config.format, plan.other_bytes)


def other_bytes(job: Job) -> int:
    """Bytes on disk of the tensors that stay as they are."""
    quantized = {f"{name}.weight" for name in job.shapes}
    return sum(job.source.bytes(name) for name in job.source.names if name not in quantized)


def _plan(
    job: Job,
    config: QuantConfig,
    plan: str | Path | None,
    salience: str | Path | None,
    progress: Progress | None,
) -> tuple[Plan, Salience | None]:
    if plan is not None:
        chosen = Plan.load(Path(plan))
        _check_fit(chosen.modules, job, plan)
        return chosen, None
    scores = None
    if salience is not None:
        scores = Salience.load(Path(salience))
        _check_fit(scores.modules, job, salience)
    elif not is_uniform(config):
        scores = score(job, config, progress)
    return make_plan(job, config, scores), scores


def _check_fit(
    modules: Mapping[str, ModulePlan] | Mapping[str, ModuleSalience], job: Job, where: str | Path
) -> None:
    expected = job.shapes
    shapes = {name: (module.out_features, module.in_features) for name, module in modules.items()}
    for name in {**expected, **shapes}:
        if shapes.get(name) != expected.get(name):
            has, needs = shapes.get(name, "missing"), expected.get(name, "no such layer")
            raise MixllmError(
                f"{where}: {name}: {has}, but the model has {needs}; it was made for another model"
            )


@contextmanager
def _staging(out: Path, overwrite: bool) -> Iterator[Path]:
    """A directory beside `out` that takes its name when all went well, and is removed otherwise."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())) and not overwrite:
        raise MixllmError(f"{out}: exists and is not empty; choose another directory or give --overwrite")
    out.parent.mkdir(parents=True, exist_ok=True)
    stage = out.with_name(f".{out.name}.partial")
    shutil.rmtree(stage, ignore_errors=True)
    stage.mkdir()
    try:
        yield stage
        if out.exists():
            shutil.rmtree(out)
        stage.rename(out)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


class _Clock:
    """Seconds by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.seconds[stage] = round(time.monotonic() - began, 3)
