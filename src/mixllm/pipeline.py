"""The whole job, in order: read, score, plan, round, write. The one place that knows the order."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import asdict, dataclass
from os import PathLike, fspath
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_args

import torch

from mixllm.card import new_card
from mixllm.choosing import SCORE, chosen_plan, is_uniform, score, sizes
from mixllm.clock import Clock
from mixllm.config import SHARD_SIZE, QuantConfig
from mixllm.disk import checkpoint_bytes, measuring_bytes, parse_size, run_bytes
from mixllm.errors import MixllmError
from mixllm.files import at_home, read_json, write_json
from mixllm.given import Given, read_given, require_one
from mixllm.job import Job, open_job
from mixllm.needs import tuning_needs
from mixllm.out import require_out
from mixllm.placement import device_name, pick_device, versions
from mixllm.plan import Plan
from mixllm.progress import JsonLines, Progress, Silent, Together
from mixllm.ranks import Ranks, joined
from mixllm.records import LOG, PLAN, SALIENCE, SUMMARY
from mixllm.resume import SCRATCH, Resume, finished, identify, workspace
from mixllm.source import is_gguf
from mixllm.space import require_space
from mixllm.writing import ROUND, rounded_by, write_quantized

# What the first of several processes tells the others when all is done.
END = "end"


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
class _Asked:
    """What quantize() was given, whose words these are."""

    model: str
    out: Path
    config: QuantConfig
    device: str
    dtype: str
    plan: Path | None
    salience: Path | None
    overwrite: bool
    resume: Resume
    shard_bytes: int

    def opened(self, ranks: Ranks) -> Job:
        """The model and its text; process 0 goes first, so that the others find what it has downloaded."""
        with ranks.one_first():
            return open_job(self.model, self.config, device=self.device, dtype=self.dtype, ranks=ranks)


def quantize(
    model: str | PathLike[str],
    out: str | PathLike[str],
    config: QuantConfig | None = None,
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
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
    if not isinstance(config, QuantConfig | None):
        raise MixllmError(f"config: is a {type(config).__name__}; give a mixllm.QuantConfig")
    if resume not in get_args(Resume):
        raise MixllmError(f"resume: {resume!r} is unknown; give {', '.join(get_args(Resume))}")
    require_one(plan, salience)
    files = [None if file is None else at_home(file) for file in (plan, salience)]
    asked = _Asked(
        fspath(model), at_home(out), config or QuantConfig(), device=str(device),
        dtype=str(dtype).removeprefix("torch."), plan=files[0], salience=files[1],
        overwrite=overwrite, resume=resume, shard_bytes=parse_size(shard_size),
    )  # fmt: skip
    with joined(pick_device(asked.device)) as ranks:
        if asked.config.tune and ranks.size > 1:
            raise MixllmError("tune: runs in one process; start without torchrun, or leave --tune out")
        if not ranks.first:
            return follow(asked.opened(ranks), asked.config)
        summary = _lead(asked, ranks, progress or Silent())
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
            widths = {name: torch.from_numpy(bits) for name, bits in given.items()}
            with TemporaryDirectory(prefix=SCRATCH) as work:
                deque(rounded_by(job, widths, config, Path(work), Silent(), {}), maxlen=0)
        else:
            summary: Summary = given
            return summary


def _lead(asked: _Asked, ranks: Ranks, told: Progress) -> Summary:
    model, out, config, overwrite = asked.model, asked.out, asked.config, asked.overwrite
    clock = Clock()
    require_out(out, model, overwrite=overwrite, resume=asked.resume)
    with clock("open"):
        job = asked.opened(ranks)
        if is_gguf(model):
            told.note(f"{model}: converted to {job.source.path}, which stays for further runs")
        given = read_given(job.shapes, asked.plan, asked.salience)
        identity = identify(
            job.source.path, job.ids, config, job.decoder.device, job.decoder.dtype, tuning=job.tuning,
            shard_size=asked.shard_bytes, files={"plan": asked.plan, "salience": asked.salience},
        )  # fmt: skip
    if not overwrite and finished(out, identity):
        told.note(f"{out}: finished before; nothing to do")
        # JSON has no numbers for keys, so what the plan says is counted again.
        again = {"report": asdict(sizes(Plan.load(out / PLAN), config))}
        return Summary(**{**read_json(out / SUMMARY), **again})
    require_out(out, model, overwrite=overwrite, resume="never")
    with workspace(out, identity, asked.resume, told) as stage:
        with (stage / LOG).open("a", encoding="utf-8") as log:
            JsonLines(log).note(f"mixllm {versions()['mixllm']}: {model} into {out}")
            summary = _make(asked, job, given, stage, clock, Together(told, JsonLines(log)))
        write_json(stage / SUMMARY, asdict(summary))
        new_card(stage, job.source.path, model)
    return summary


def _make(asked: _Asked, job: Job, given: Given, stage: Path, clock: Clock, told: Progress) -> Summary:
    """Fill the directory `stage` with all but the summary and the card."""
    config, shard_bytes = asked.config, asked.shard_bytes
    require_space(stage, _disk_bytes(job, config, given, shard_bytes))
    if config.tune:  # known now, needed last
        samples, window = (job.ids if job.tuning is None else job.tuning).shape
        where, kind = job.decoder.device, job.decoder.dtype
        tuning_needs(job.sizes, samples, window, where, kind, codes=config.tune_codes)
    with clock("salience"):
        chosen, scores = chosen_plan(job, config, given, stage, told)
    chosen.save(stage / PLAN)
    with clock("round"):
        write_quantized(job, chosen, config, stage, told, shard_bytes)
    if scores is not None and not (stage / SALIENCE).is_file():
        scores.save(stage / SALIENCE)
    return Summary(
        out=str(asked.out),
        model=asked.model,
        device=device_name(job.decoder.device),
        date=time.strftime("%Y-%m-%d", time.gmtime()),
        versions=versions(),
        config=config.model_dump(mode="json"),
        report=asdict(sizes(chosen, config)),
        seconds=clock.seconds,
    )


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
