"""Round by a plan and write the checkpoint: the second half of the job, on a model that is open."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from mixllm.config import QuantConfig
from mixllm.files import write_json
from mixllm.format.checkpoint import SPOOL, assemble
from mixllm.format.early import Early, begin_early
from mixllm.format.mixed import MixedWeight
from mixllm.format.pack import pack, unpack
from mixllm.format.rounded import Rounded
from mixllm.format.split import SHARD_BYTES
from mixllm.format.spool import Spool
from mixllm.job import Job
from mixllm.plan import Plan
from mixllm.progress import Progress, Silent
from mixllm.records import LAYERS, RECORDS
from mixllm.resume import SCRATCH
from mixllm.rounding.observed import Observed
from mixllm.rounding.walk import round_model
from mixllm.tuning import tune_scales

# What the first of several processes tells the others before they round together.
ROUND = "round"


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
    spool, counts = Spool(out / SPOOL), plan.counts()
    modules = {name: counts[name] for name in job.shapes}
    with ExitStack() as stack:
        early = None
        if not (out / LAYERS).is_file():
            if not config.tune:  # which changes all layers once more
                early = begin_early(out, job.source, config.format, modules, shard_bytes)
                stack.callback(early.close)
            _round(job, plan, config, spool, progress or Silent(), early)
            if config.tune:
                _tune(job, config, spool, progress or Silent())
            (out / RECORDS).mkdir(exist_ok=True)
            write_json(out / LAYERS, spool.notes())
        last = _last(spool) if config.tune else spool
        assemble(out, job.source, config.format, modules, last, shard_bytes, early)
    spool.remove()


def _round(
    job: Job, plan: Plan, config: QuantConfig, spool: Spool, progress: Progress, early: Early | None
) -> None:
    """Fill the spool with every block that is not there yet, and what was observed of its layers.

    early: is given the files of the spool.
    """
    if early is not None:
        for file in spool.files():
            early.take(file)
    widths = {name: module.widths for name, module in plan.modules.items()}
    blocks = [len(job.decoder.linears(i)) for i in range(len(job.decoder))]
    seen: dict[str, Observed] = {}
    # As arrays, which pickle as they are: torch's tensors take two seconds for an 8B model's.
    job.ranks.tell((ROUND, {name: bits.numpy() for name, bits in widths.items()}))
    with TemporaryDirectory(prefix=SCRATCH, dir=spool.directory.parent) as work:
        rounded = rounded_by(job, widths, config, Path(work), progress, seen, spool)
        # A block goes to the host and to its file while the next one is rounded.
        device = job.decoder.device
        beside = torch.cuda.Stream(device) if device.type == "cuda" else None
        with ThreadPoolExecutor(1, thread_name_prefix="mixllm-write") as thread:
            written: list[Future[None]] = []
            for count in blocks[len(spool) :]:
                layers = dict(islice(rounded, count))
                notes = {name: asdict(seen[name]) for name in layers if name in seen}
                for before in written:
                    before.result()
                if beside is not None:
                    beside.wait_stream(torch.cuda.current_stream(device))
                written = [thread.submit(_append, spool, layers, notes, beside, early)]
                del layers
            deque(rounded, maxlen=0)  # the walk's own end
            for last in written:
                last.result()


def _append(
    spool: Spool,
    layers: dict[str, MixedWeight],
    notes: dict[str, Any],
    stream: torch.cuda.Stream | None,
    early: Early | None,
) -> None:
    """Spool.append, with copies from the device on a stream of their own; `early` is given the file."""
    with torch.cuda.stream(stream):
        file = spool.append(layers, notes)
    if early is not None:
        early.take(file)


def _tune(job: Job, config: QuantConfig, spool: Spool, progress: Progress) -> None:
    """Fill a second spool with the layers of the first, tuned; one that a cut run has begun is begun anew."""
    _last(spool).remove()
    tuned, blocks = _last(spool), [spool.block(i) for i in range(len(spool))]
    layers = {name: unpack(weight, config.format) for block in blocks for name, weight in block.items()}
    found = _tuned(job, config, layers, progress)
    for block in blocks:
        tuned.append({name: pack(found[name], config.format) for name in block}, {})


def _last(spool: Spool) -> Spool:
    """Where tuned layers wait."""
    return Spool(spool.directory / "tuned")


def _tuned(
    job: Job, config: QuantConfig, layers: dict[str, Rounded], progress: Progress
) -> dict[str, Rounded]:
    ids = job.ids if job.tuning is None else job.tuning
    return tune_scales(
        job.decoder, ids, layers, config.format, epochs=config.tune,
        calibration=job.ids if config.tune_codes else None, seed=config.seed, progress=progress,
    )  # fmt: skip


def rounded_layers(job: Job, plan: Plan, config: QuantConfig) -> dict[str, Rounded]:
    """Every linear layer as write_quantized writes it, in memory, in model order."""
    widths = {name: module.widths for name, module in plan.modules.items()}
    with TemporaryDirectory(prefix=SCRATCH) as work:
        rounded = rounded_by(job, widths, config, Path(work), Silent(), {})
        layers = {name: unpack(layer, config.format) for name, layer in rounded}
    return _tuned(job, config, layers, Silent()) if config.tune else layers


def rounded_by(
    job: Job,
    widths: Mapping[str, Tensor],
    config: QuantConfig,
    work: Path,
    progress: Progress,
    seen: dict[str, Observed],
    finished: Spool | None = None,
) -> Iterator[tuple[str, MixedWeight]]:
    """round_model of a job; work: a directory for states that fit no memory."""
    return round_model(
        job.decoder, job.ids, widths, config, room=job.room(work, measured=False), batch=job.batch,
        progress=progress, seen=seen, ranks=job.ranks, finished=finished,
    )  # fmt: skip
