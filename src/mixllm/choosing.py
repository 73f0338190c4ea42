"""The first half of the job, on a model that is open: salience measured, or given, and the budget spent."""

from __future__ import annotations

import shutil
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from mixllm.config import QuantConfig
from mixllm.given import Given
from mixllm.job import Job
from mixllm.kernels.meanwhile import compiled_meanwhile
from mixllm.plan import Plan, Report, Salience, choose, report
from mixllm.progress import Progress, Silent
from mixllm.records import SALIENCE
from mixllm.resume import MEASURING, SCRATCH
from mixllm.rounding import needs_hessian
from mixllm.salience.kept import Kept
from mixllm.salience.measure import measure_salience

# What the first of several processes tells the others before they measure together.
SCORE = "score"


def chosen_plan(
    job: Job, config: QuantConfig, given: Given, stage: Path, progress: Progress
) -> tuple[Plan, Salience | None]:
    """The plan that was given or else chosen, and the salience it comes from.

    A salience that is measured here, with the other processes, is kept in the directory `stage` at once; one
    of a run with another budget that lies there is used, or removed where there is nothing to choose.
    """
    plan, scores = given
    if plan is None:
        if scores is None and not is_uniform(config):
            scores = _measured(job, config, stage, progress)
        plan = make_plan(job, config, scores)
    if scores is None:
        (stage / SALIENCE).unlink(missing_ok=True)
    return plan, scores


def _measured(job: Job, config: QuantConfig, stage: Path, progress: Progress) -> Salience:
    if not (stage / SALIENCE).is_file():
        job.ranks.tell((SCORE, None))
        score(job, config, progress, stage).save(stage / SALIENCE)
        shutil.rmtree(stage / MEASURING, ignore_errors=True)
    return Salience.load(stage / SALIENCE)


def score(
    job: Job, config: QuantConfig, progress: Progress | None = None, stage: Path | None = None
) -> Salience:
    """The salience of every output channel (see mixllm.salience), and meanwhile the kernels that rounding
    will run are compiled, where it runs any.

    stage: a directory for what is needed meanwhile, and for what lets a call that was cut go on (one process;
    several may have come to different blocks).
    """
    kept = None if stage is None or job.ranks.size > 1 else Kept(stage / MEASURING, job.boundary)
    ahead: AbstractContextManager[None] = nullcontext()
    if needs_hessian(config):
        tokens, decoder = job.batch * job.ids.shape[1], job.decoder
        layers = job.shapes.values()
        ahead = compiled_meanwhile(layers, config.format, tokens, decoder.dtype, decoder.device)
    with ahead, TemporaryDirectory(prefix=SCRATCH, dir=stage) as work:
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


def sizes(plan: Plan, config: QuantConfig) -> Report:
    """What a checkpoint made by this plan in this config's format takes."""
    return report(plan.counts(), config.format, plan.other_bytes)
