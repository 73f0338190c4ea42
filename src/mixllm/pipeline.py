"""The whole job, in order: read, score, plan, round, write. The one place that knows the order."""

from __future__ import annotations

import shutil
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor

from mixllm.blocks import Decoder
from mixllm.card import new_card
from mixllm.config import WIDTHS, QuantConfig
from mixllm.data import load_text, windows
from mixllm.disk import parse_size
from mixllm.errors import MixllmError
from mixllm.files import read_json, write_json
from mixllm.format.checkpoint import SHARD_BYTES, SPOOL, assemble
from mixllm.format.pack import pack
from mixllm.format.spool import Spool
from mixllm.given import Given, read_given
from mixllm.placement import device_name, pick_device, pick_dtype, versions
from mixllm.plan import Plan, Report, choose, report
from mixllm.progress import JsonLines, Progress, Silent, Together
from mixllm.records import LAYERS, LOG, PLAN, RECORDS, RUN, SALIENCE, SUMMARY
from mixllm.resume import MEASURING, Resume, finished, identify, workspace
from mixllm.rounding.observed import Observed
from mixllm.rounding.walk import round_model
from mixllm.salience import measure_salience
from mixllm.salience_file import Salience
from mixllm.source import Source, open_source

SHARD_SIZE = "5GB"
# Enough for full matrix products on each; the boundary states of a batch are small beside its block.
TOKENS_AT_ONCE = {"cuda": 16_384, "cpu": 4_096}


@dataclass(frozen=True)
class Summary:
    """What a run made, and how: `out`, sizes (see mixllm.plan.Report), seconds by stage (where it was cut
    and went on, since then), the day (UTC) and versions. model: as it was given; device: where it was
    computed."""

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


def score(
    job: Job, config: QuantConfig, progress: Progress | None = None, work: Path | None = None
) -> Salience:
    """The salience of every output channel (see mixllm.salience); work: where a cut one goes on."""
    with TemporaryDirectory(prefix="mixllm-") as temporary:
        return measure_salience(
            job.decoder, job.ids, config, work=work or Path(temporary), batch=job.batch,
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
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Round by the plan and fill the directory `out` with the checkpoint.

    What a call with the same arguments has finished in `out` before it was cut is not done again.
    """
    spool = Spool(out / SPOOL)
    if not (out / LAYERS).is_file():
        _round(job, plan, config, spool, progress or Silent())
        (out / RECORDS).mkdir(exist_ok=True)
        write_json(out / LAYERS, spool.notes())
    counts = plan.counts()
    modules = {
        name: replace(counts[name], rows={width: counts[name].rows.get(width, 0) for width in WIDTHS})
        for name in job.shapes
    }
    assemble(out, job.source, config.format, modules, spool, shard_bytes)


def _round(job: Job, plan: Plan, config: QuantConfig, spool: Spool, progress: Progress) -> None:
    """Fill the spool with every block that is not there yet, and what was observed of its layers."""
    widths = {name: module.widths for name, module in plan.modules.items()}
    blocks = [len(job.decoder.linears(i)) for i in range(len(job.decoder))]
    seen: dict[str, Observed] = {}
    rounded = round_model(
        job.decoder, job.ids, widths, config, batch=job.batch, progress=progress, seen=seen, finished=spool
    )
    for count in blocks[len(spool) :]:
        layers = {name: pack(layer, config.format).to("cpu") for name, layer in islice(rounded, count)}
        spool.append(layers, {name: asdict(seen[name]) for name in layers if name in seen})
    deque(rounded, maxlen=0)  # the walk's own end


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
    resume: Resume = "auto",
    shard_size: str = SHARD_SIZE,
    progress: Progress | None = None,
) -> Summary:
    """Quantize `model` into the directory `out`, which appears only when it is whole.

    plan: a plan file to follow instead of choosing; salience: a salience file to choose from instead of
    measuring. Both, and the summary, are kept in out/mixllm. shard_size: of the checkpoint's files.
    resume: "auto" goes on with what an earlier, cut run with the same arguments has finished, and does
    nothing where it has finished all; "require" refuses to start from nothing; "never" starts anew.
    Raises MixllmError for what the user gave.
    """
    config, out = config or QuantConfig(), Path(out)
    told, clock, shard_bytes = progress or Silent(), _Clock(), parse_size(shard_size)
    _check_out(out, overwrite or (resume != "never" and (out / RUN).is_file()))
    with clock("open"):
        job = open_job(model, config, device=device, dtype=dtype, work=out.parent)
        given = read_given(job.shapes, plan, salience)
        identity = identify(
            job.source.path, job.ids, config, job.decoder.device, job.decoder.dtype,
            shard_size=shard_bytes, files={"plan": plan, "salience": salience},
        )  # fmt: skip
    if not overwrite and finished(out, identity):
        told.note(f"{out}: finished before; nothing to do")
        return Summary(**read_json(out / SUMMARY))
    _check_out(out, overwrite)
    with workspace(out, identity, resume, told) as stage:
        with (stage / LOG).open("a", encoding="utf-8") as log:
            told = Together(told, JsonLines(log))
            with clock("salience"):
                chosen, scores = _choose(job, config, given, stage, told)
            chosen.save(stage / PLAN)
            with clock("round"):
                write_quantized(job, chosen, config, stage, told, shard_bytes)
        if scores is not None:
            scores.save(stage / SALIENCE)
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


def _choose(
    job: Job,
    config: QuantConfig,
    given: Given,
    stage: Path,
    progress: Progress,
) -> tuple[Plan, Salience | None]:
    """The plan, and the salience it comes from; one that is measured here is kept in `stage` at once."""
    plan, scores = given
    if plan is None:
        if scores is None and not is_uniform(config):
            scores = _measured(job, config, stage, progress)
        plan = make_plan(job, config, scores)
    if scores is None:
        (stage / SALIENCE).unlink(missing_ok=True)  # of a run with another budget
    return plan, scores


def _measured(job: Job, config: QuantConfig, stage: Path, progress: Progress) -> Salience:
    if not (stage / SALIENCE).is_file():
        work = stage / MEASURING
        work.mkdir(exist_ok=True)
        score(job, config, progress, work).save(stage / SALIENCE)
        shutil.rmtree(work)
    return Salience.load(stage / SALIENCE)


def _check_out(out: Path, taken_is_fine: bool) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())) and not taken_is_fine:
        raise MixllmError(f"{out}: exists and is not empty; choose another directory or give --overwrite")
    if out.is_mount():
        raise MixllmError(f"{out}: is a mount point, which cannot be replaced; give a directory in it")


class _Clock:
    """Seconds by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.seconds[stage] = round(time.monotonic() - began, 3)
