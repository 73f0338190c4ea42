"""The whole job, in order: read, score, plan, round, write. The one place that knows the order."""

from __future__ import annotations

import shutil
import time
from collections import deque
from dataclasses import asdict, dataclass, replace
from os import PathLike, fspath
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mixllm.card import new_card
from mixllm.clock import Clock
from mixllm.config import SHARD_SIZE, QuantConfig
from mixllm.disk import checkpoint_bytes, measuring_bytes, parse_size, require_space, run_bytes
from mixllm.errors import MixllmError
from mixllm.files import read_json, write_json
from mixllm.given import Given, read_given
from mixllm.job import Job, open_job
from mixllm.needs import tuning_needs
from mixllm.placement import device_name, pick_device, versions
from mixllm.plan import Plan, Report, Salience, choose, report
from mixllm.progress import JsonLines, Progress, Silent, Together
from mixllm.ranks import Ranks, joined
from mixllm.records import LOG, PLAN, RUN, SALIENCE, SUMMARY
from mixllm.resume import MEASURING, SCRATCH, Resume, finished, identify, workspace
from mixllm.salience.kept import Kept
from mixllm.salience.measure import measure_salience
from mixllm.writing import ROUND, rounded_by, write_quantized

# What the first of several processes tells the others to do with it.
SCORE, END = "score", "end"


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


def score(
    job: Job, config: QuantConfig, progress: Progress | None = None, stage: Path | None = None
) -> Salience:
    """The salience of every output channel (see mixllm.salience).

    stage: a directory for what is needed meanwhile, and for what lets a call that was cut go on (one process;
    several may have come to different blocks).
    """
    kept = None if stage is None or job.ranks.size > 1 else Kept(stage / MEASURING, job.boundary)
    with TemporaryDirectory(prefix=SCRATCH, dir=stage) as work:
        return measure_salience(
            job.decoder, job.ids, config, room=job.room(Path(work), measured=True), batch=job.batch,
            other_bytes=job.other_bytes, progress=progress or Silent(), ranks=job.ranks, kept=kept,
        )  # fmt: skip


def make_plan(job: Job, config: QuantConfig, salience: Salience | None) -> Plan:
    """Spend the config's budget. salience may be None where the budget leaves no choice (see is_uniform)."""
    if is_uniform(config):
        return Plan.uniform(job.shapes, round(config.bits or 0), config.format, job.other_bytes)
    assert salience is not None
    plan = choose(
        salience.among(config.widths),
        bits=config.bits, channels=config.channels, scope=config.scope, seed=config.seed,
    )  # fmt: skip
    return replace(plan, format=config.format)


def is_uniform(config: QuantConfig) -> bool:
    """Whether every row gets one width, so that there is nothing to choose and no salience to measure."""
    return config.bits in (config.widths[0], config.widths[-1])


def quantize(
    model: str | PathLike[str],
    out: str | PathLike[str],
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

    model: a directory with config.json and safetensors, a hub name or a GGUF file. config: None, the default
    format at 4.4 bits. device: "auto" (a GPU if there is one), "cpu", "cuda", "cuda:1". dtype: of the float
    model's arithmetic; "auto" is float32 on a CPU, the model's own on a GPU (see mixllm.placement).
    plan: a plan file to follow instead of choosing; salience: a salience file to choose from instead of
    measuring. Both, and the summary, are kept in out/mixllm. overwrite: replace what `out` holds.
    shard_size: of the checkpoint's files, at most: "5GB", "500MB".
    resume: "auto" goes on with what an earlier, cut run with the same arguments has finished, and does
    nothing where it has finished all; "require" refuses to start from nothing; "never" starts anew.
    Started by torchrun, several processes do this together; the first alone writes and tells, all return
    the same. Raises MixllmError for what the user gave.
    """
    model, config, out = fspath(model), config or QuantConfig(), Path(out)
    with joined(pick_device(device)) as ranks:
        if config.tune and ranks.size > 1:
            raise MixllmError("tune: runs in one process; start without torchrun, or leave --tune out")
        if not ranks.first:
            with ranks.one_first():
                job = open_job(model, config, device=device, dtype=dtype, work=out.parent, ranks=ranks)
            return follow(job, config)
        summary = _lead(
            model, out, config, ranks, device, dtype, plan, salience, overwrite, resume, shard_size, progress
        )
        ranks.tell((END, summary))
        return summary


def follow(job: Job, config: QuantConfig) -> Summary:
    """Do this process's part of what the first one does, and return what it returns."""
    order: str
    given: Any
    while True:
        order, given = job.ranks.tell()
        if order == SCORE:
            score(job, config)
        elif order == ROUND:
            with TemporaryDirectory(prefix=SCRATCH) as work:
                deque(rounded_by(job, given, config, Path(work), Silent(), {}), maxlen=0)
        else:
            summary: Summary = given
            return summary


def _lead(
    model: str,
    out: Path,
    config: QuantConfig,
    ranks: Ranks,
    device: str,
    dtype: str,
    plan: str | Path | None,
    salience: str | Path | None,
    overwrite: bool,
    resume: Resume,
    shard_size: str,
    progress: Progress | None,
) -> Summary:
    told, clock, shard_bytes = progress or Silent(), Clock(), parse_size(shard_size)
    _check_out(out, model, overwrite or (resume != "never" and (out / RUN).is_file()))
    with clock("open"):
        with ranks.one_first():
            job = open_job(model, config, device=device, dtype=dtype, work=out.parent, ranks=ranks)
        if model.endswith(".gguf"):
            told.note(f"{model}: converted to {job.source.path}, which stays for further runs")
        given = read_given(job.shapes, plan, salience)
        identity = identify(
            job.source.path, job.ids, config, job.decoder.device, job.decoder.dtype,
            tuning=job.tuning, shard_size=shard_bytes, files={"plan": plan, "salience": salience},
        )  # fmt: skip
    if not overwrite and finished(out, identity):
        told.note(f"{out}: finished before; nothing to do")
        # JSON has no numbers for keys, so what the plan says is counted again.
        again = {"report": asdict(sizes(Plan.load(out / PLAN), config))}
        return Summary(**{**read_json(out / SUMMARY), **again})
    _check_out(out, model, overwrite)
    with workspace(out, identity, resume, told) as stage:
        with (stage / LOG).open("a", encoding="utf-8") as log:
            JsonLines(log).note(f"mixllm {versions()['mixllm']}: {model} into {out}")
            told = Together(told, JsonLines(log))
            require_space(stage, _disk_bytes(job, config, given, shard_bytes))
            if config.tune:  # known now, needed last
                samples, window = (job.ids if job.tuning is None else job.tuning).shape
                where, kind = job.decoder.device, job.decoder.dtype
                tuning_needs(job.sizes, samples, window, where, kind, codes=config.tune_codes)
            with clock("salience"):
                chosen, scores = _choose(job, config, given, stage, told)
            chosen.save(stage / PLAN)
            with clock("round"):
                write_quantized(job, chosen, config, stage, told, shard_bytes)
        if scores is not None and not (stage / SALIENCE).is_file():
            scores.save(stage / SALIENCE)
        summary = Summary(
            out=str(out),
            model=model,
            device=device_name(job.decoder.device),
            date=time.strftime("%Y-%m-%d", time.gmtime()),
            versions=versions(),
            config=config.model_dump(mode="json"),
            report=asdict(sizes(chosen, config)),
            seconds=clock.seconds,
        )
        write_json(stage / SUMMARY, asdict(summary))
        new_card(stage, job.source.path, model)
    return summary


def sizes(plan: Plan, config: QuantConfig) -> Report:
    """What a checkpoint made by this plan in this config's format takes."""
    return report(plan.counts(), config.format, plan.other_bytes)


def _disk_bytes(job: Job, config: QuantConfig, given: Given, shard_bytes: int) -> int:
    """The most that the run will have on disk at once."""
    plan, scores = given
    if plan is None:
        checkpoint = checkpoint_bytes(job.shapes, config, job.other_bytes)
    else:
        checkpoint = sizes(plan, config).checkpoint_bytes
    measuring = 0
    if plan is None and scores is None and not is_uniform(config):
        measuring = measuring_bytes(job.boundary, job.needs(measured=True).temporary)
    return run_bytes(checkpoint, shard_bytes, measuring, tuned=config.tune > 0)


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
        job.ranks.tell((SCORE, None))
        score(job, config, progress, stage).save(stage / SALIENCE)
        shutil.rmtree(stage / MEASURING, ignore_errors=True)
    return Salience.load(stage / SALIENCE)


def _check_out(out: Path, model: str, taken_is_fine: bool) -> None:
    if out.name in ("", ".."):
        raise MixllmError(f"{out}: has no name of its own; give the directory by its name")
    if out.exists() and not out.is_dir():
        raise MixllmError(f"{out}: is no directory; give another name")
    source = Path(model).expanduser()
    if source.exists() and source.resolve().is_relative_to(out.resolve()):
        raise MixllmError(f"{out}: the model itself is there and would be replaced; choose another directory")
    if out.exists() and any(out.iterdir()) and not taken_is_fine:
        raise MixllmError(f"{out}: exists and is not empty; choose another directory or give --overwrite")
    if out.is_mount():
        raise MixllmError(f"{out}: is a mount point, which cannot be replaced; give a directory in it")
