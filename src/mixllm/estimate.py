"""What a run will need, told before it starts: counted operations over a measured rate, and sizes.

Only the model's config is read. The time is good to a factor of two or so: operations are counted, what is
bound by memory is in one measured factor.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch

from mixllm.config import GROUP_SIZE, QuantConfig
from mixllm.data import require_text
from mixllm.disk import checkpoint_bytes, measuring_bytes, run_bytes
from mixllm.format.split import SHARD_BYTES
from mixllm.given import read_given, require_one
from mixllm.needs import needs, tuning_needs
from mixllm.outline import Outline, outline
from mixllm.placement import pick_device, pick_dtype
from mixllm.plan import report
from mixllm.rounding import needs_hessian
from mixllm.space import free_bytes
from mixllm.texts import require_window

# A run's time over that of its counted operations at full rate: 6 blocks of SmolLM2-135M on 2 CPU cores took
# 1.9 of it, an 8B model on an H200 1.6.
SLACK = 1.8
# Grids that a sweep tries: a group's own and its neighbours.
GRIDS = 5


@dataclass(frozen=True)
class Estimate:
    """What a run needs: seconds on `device`; at their peaks gpu_bytes (0 on a CPU), memory_bytes of the host,
    page cache aside, and disk_bytes, of which checkpoint_bytes stay; free_bytes are what the disk has.
    conversion_bytes go to the cache beforehand, where the model is a GGUF file that is not there yet."""

    device: str
    seconds: float
    gpu_bytes: int
    memory_bytes: int
    checkpoint_bytes: int
    disk_bytes: int
    free_bytes: int
    conversion_bytes: int


def estimate(
    model: str,
    out: Path,
    config: QuantConfig,
    *,
    device: str,
    dtype: str,
    measured: bool,
    shard_bytes: int = SHARD_BYTES,
    plan: Path | None = None,
    salience: Path | None = None,
) -> Estimate:
    """For quantize() with the same arguments. measured: the run measures salience itself.

    Raises MixllmError for what that would refuse: a model, text, plan or salience that isn't there or doesn't
    fit. A text isn't read, nor looked for on the hub.
    """
    require_one(plan, salience)
    where, found = pick_device(device), outline(model)
    kind, sizes = pick_dtype(dtype, where, found.config), found.sizes
    shapes = {name: shape for block in sizes.blocks for name, shape in block.items()}
    require_window(config.window, found.config)
    require_text(config.calibration)
    if config.tune_text is not None:
        require_text(config.tune_text)
    follow, _ = read_given(shapes, plan, salience)
    if follow is None:
        checkpoint = checkpoint_bytes(shapes, config, found.other_bytes)
    else:
        checkpoint = report(follow.counts(), config.format, found.other_bytes).checkpoint_bytes
    tokens = config.samples * config.window
    candidates = config.widths if measured else ()
    needed = needs(sizes, tokens, config.window, where, kind, measured=candidates, error=config.error)
    states = tokens * sizes.hidden * kind.itemsize
    measuring = measuring_bytes(states, needed.temporary) if measured else 0
    device_bytes, host_bytes = needed.device, needed.host
    if config.tune:
        samples = config.tune_samples or config.samples
        tuning = tuning_needs(sizes, samples, config.window, where, kind, codes=config.tune_codes)
        device_bytes, host_bytes = max(device_bytes, tuning[0]), max(host_bytes, tuning[1])
    return Estimate(
        device=str(where),
        seconds=SLACK * _operations(found, config, measured, needed.again) / _rate(where, kind),
        gpu_bytes=device_bytes,
        memory_bytes=host_bytes,
        checkpoint_bytes=checkpoint,
        disk_bytes=run_bytes(checkpoint, shard_bytes, measuring, tuned=config.tune > 0),
        free_bytes=free_bytes(out),
        conversion_bytes=found.conversion_bytes,
    )


def _operations(model: Outline, config: QuantConfig, measured: bool, again: int) -> float:
    """Multiplications and additions: per token for the walks and tuning, per weight and input for GPTQ.

    again: blocks that salience goes through once more (see mixllm.needs.Needs).
    """
    tokens, sizes = config.samples * config.window, model.sizes
    # Of a Hessian, half: it is symmetric.
    forward, hessian = 2 * sizes.met, sizes.hessians_met
    gptq = sum(n * k * k for block in sizes.blocks for n, k in block.values())
    # A Cholesky factor and its inverse.
    factors = sum(k**3 for k in sizes.hessians)
    total = 0.0
    if measured:
        # Forward; again with its backward; the error of every width; the head and its backward.
        passes = 3 + len(config.widths) + again / len(sizes.blocks)
        total += tokens * (passes * forward + 4 * model.head)
        if config.error == "gptq":
            total += tokens * hessian + len(config.widths) * gptq + factors
    if needs_hessian(config):
        total += tokens * (2 * forward + hessian) + gptq + factors
    if config.sweeps or config.tune:
        weights = (shape for block in sizes.blocks for shape in block.values())
        total += config.sweeps * sum(n * k * (4 * k + 2 * GRIDS * GROUP_SIZE) for n, k in weights)
        # Forward, again and backward by inputs; the heads of both models, again and backward.
        tuned = config.tune * (config.tune_samples or config.samples) * config.window
        total += tuned * (3 * forward + 10 * model.head)
    return total


def _rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a matrix product that is too large for caches, measured for a moment."""
    n = 4096 if device.type == "cuda" else 1024
    a = torch.randn(n, n, device=device, dtype=dtype)
    (a @ a).sum().item()
    began, products = time.perf_counter(), 0
    while (spent := time.perf_counter() - began) < 0.3:
        (a @ a)[0, 0].item()
        products += 1
    return 2 * n**3 * products / spent
