"""Sizes on disk: as a user types them, and what a run will need."""

from __future__ import annotations

import re
from collections.abc import Mapping

from mixllm.config import QuantConfig
from mixllm.errors import MixllmError
from mixllm.format.config import QuantizedModule
from mixllm.plan import report

_UNITS = {
    "": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
}


def parse_size(text: str) -> int:
    """Bytes of "5GB", "500 MB", "2GiB" or "1000000"; MixllmError for anything else."""
    found = re.fullmatch(r"([\d.]+)\s*([A-Z]*)", text.strip().upper())
    try:
        size = int(float(found[1]) * _UNITS[found[2]]) if found else 0
    except (ValueError, KeyError, OverflowError):
        size = 0
    if size < 1:
        raise MixllmError(f"shard size: {text!r} is no size; give one such as 5GB or 500MB")
    return size


def checkpoint_bytes(shapes: Mapping[str, tuple[int, int]], config: QuantConfig, other_bytes: int) -> int:
    """What a checkpoint will take, before any choice is made.

    shapes: (out_features, in_features) by layer; other_bytes: of what is not quantized.
    """
    low, high = config.widths[0], config.widths[-1]
    counts = {name: QuantizedModule(k, n, {low: n}) for name, (n, k) in shapes.items()}
    # Payload bits are the budget; scales, zeros and row numbers hardly depend on the choice.
    found = report(counts, config.format, other_bytes)
    bits = config.bits or low + (config.channels or 0) / 100 * (high - low)
    return found.checkpoint_bytes + round((bits - low) / 8 * found.weights)


def measuring_bytes(states: int, temporary: int) -> int:
    """What measuring salience keeps on disk: states that fit no memory, and gradients to go on from, which
    are there twice for a moment.

    states: bytes of the hidden states at one boundary; temporary: of all that fit no memory (mixllm.needs).
    """
    return temporary + 2 * states


def run_bytes(checkpoint: int, shard: int, measuring: int, *, tuned: bool) -> int:
    """The most that a run has on disk at once: what measuring keeps, or the result and one shard twice, or,
    tuned, the result twice and a shard."""
    return max(measuring, checkpoint * (1 + tuned) + min(shard, checkpoint))
