"""Choose the tile for each number of tokens and write the tables that dispatch reads.

    python benchmarks/tune.py --out src/mixllm/kernels/cuda

That is tiles.json, and on Hopper skinny.json and strips.json (tune_strips.py); hopper.py goes by a formula.
For each bucket of tokens every candidate runs on a few layer shapes with 10 % 8-bit rows; the least geometric
mean of the times wins, in skinny.json for narrow and for wide layers apart. A candidate whose result differs
from the first one's is left out and reported.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))
import tune_strips
from candidates import BUCKETS, CANDIDATES, GROUPED, SKINNY, SKINNY_GROUPED, STRIPS
from kernels import RAW, copies, random_tensors
from timing import timed

from mixllm.config import GROUP_SIZE, PROFILES
from mixllm.kernels.cuda import hopper, ops, skinny
from mixllm.kernels.cuda.build import cubin
from mixllm.kernels.cuda.launch import device
from mixllm.kernels.cuda.rows import fitting, read, write
from mixllm.kernels.cuda.tiles import Scales

Candidates = Mapping[int, Sequence[Any]]  # by tokens, tiles of one kernel

SHAPES = [(6144, 4096), (4096, 14336), (28672, 4096), (8192, 8192)]
# A layer of at most so many channels is narrow: the first two.
NARROW = 6144
# Layers of more channels or groups than one of these may leave skinny.cu for hopper.cu with so many tokens.
LIMITS = ({}, {"channels": 10240, "groups": 128}, {"channels": 8192, "groups": 64})
LEFT = (32, 64)


def compile_one(job: tuple[Any, Scales, str]) -> None:
    tile, scales, arch = job
    cubin(tile.source, {**tile.macros(), **scales.macros()}, arch)


def compile_all(kinds: list[tuple[Candidates, Scales]], arch: str) -> None:
    jobs = {(t, scales, arch) for candidates, scales in kinds for tiles in candidates.values() for t in tiles}
    with ProcessPoolExecutor(mp_context=get_context("fork")) as pool:
        list(pool.map(compile_one, jobs))


def tune(profile: str, candidates: Candidates, scales: Scales, tiled: bool) -> list[dict[str, int]]:
    format = PROFILES[profile]
    group = 0 if format.activation_group == "token" else format.activation_group
    gemm_into: Any = skinny.gemm_into if tiled else ops.gemm_into
    times: dict[int, dict[Any, list[float]]] = {b: {t: [] for t in ts} for b, ts in candidates.items()}
    for n, k in SHAPES:
        weights = copies(random_tensors(format, n, k, 0.1))
        for bucket, by_tile in times.items():
            for t in BUCKETS[bucket]:
                x = torch.randn(t, k, dtype=torch.bfloat16, device="cuda")
                quantized = ops.quantize(x, format.rotation == "hadamard", group, tiled)
                first = None
                for tile, seen in by_tile.items():
                    y = torch.full((t, n), math.nan, dtype=torch.bfloat16, device="cuda")
                    rest = (None, scales, group, tile)
                    gemm_into(y, *quantized, weights[0], *rest)
                    first = y if first is None else first
                    largest = first.float().abs().max().item()
                    if not torch.allclose(first, y, rtol=2e-2, atol=1e-2 * largest):
                        print(f"{profile} {n}x{k} T={t}: {tile} is wrong", flush=True)
                        seen.append(math.inf)
                        continue

                    run = partial(gemm_into, y, *quantized)
                    seen.append(timed([partial(run, weight, *rest) for weight in weights]))
    rows = []
    for bucket, by_tile in times.items():
        for tile, ts in by_tile.items():
            print(profile, bucket, *asdict(tile).values(), [round(t, 1) for t in ts], flush=True)
        every = best(by_tile, lambda n: True)
        narrow, wide = best(by_tile, lambda n: n <= NARROW), best(by_tile, lambda n: n > NARROW)
        if tiled and narrow != wide:
            rows += [
                {"tokens": bucket, "channels": NARROW, **asdict(narrow)},
                {"tokens": bucket, **asdict(wide)},
            ]
        else:
            rows.append({"tokens": bucket, **asdict(every)})
        print(profile, rows[-1], flush=True)
    return rows


def leave_to_hopper(profile: str, rows: list[dict[str, int]]) -> None:
    """Limits rows of skinny.json to the layers on which hopper.cu is not faster."""
    format, scales = PROFILES[profile], Scales.of(PROFILES[profile], False)
    group = 0 if format.activation_group == "token" else format.activation_group
    for most in LEFT:
        table, times = read([row for row in rows if row["tokens"] == most], skinny.SkinnyTile), []
        for n, k in SHAPES:
            weights, groups = copies(random_tensors(format, n, k, 0.1)), -(-k // GROUP_SIZE)
            x = torch.randn(most, k, dtype=torch.bfloat16, device="cuda")
            quantized = ops.quantize(x, format.rotation == "hadamard", group, True)
            y = torch.empty(most, n, dtype=torch.bfloat16, device="cuda")
            rows16 = len(weights[0][0]) + len(weights[0][1])
            ours = next(fitting(table, most, n, groups))
            theirs = hopper.choose(scales, most, rows16, groups, device(0).multiprocessors)
            both = []
            for run, chosen in ((skinny.gemm_into, ours), (hopper.gemm_into, theirs)):
                given: Any = partial(run, y, *quantized)
                both.append(timed([partial(given, w, None, scales, group, chosen) for w in weights]))
            times.append((n, groups, *both))
            print(profile, f"{n}x{k} T={most} skinny, hopper", [round(us, 1) for us in both], flush=True)

        def mean(limits: dict[str, int], times: list[tuple[int, int, float, float]] = times) -> float:
            most = (limits.get("channels", sys.maxsize), limits.get("groups", sys.maxsize))
            return statistics.geometric_mean(
                skinny if n <= most[0] and groups <= most[1] else hopper
                for n, groups, skinny, hopper in times
            )

        limits = min(LIMITS, key=mean)
        for row in rows:
            if row["tokens"] == most and limits:
                row.update(limits, channels=min(row.get("channels", limits["channels"]), limits["channels"]))


def best(by_tile: Mapping[Any, list[float]], counts: Callable[[int], bool]) -> Any:
    """The tile with the least mean time over the shapes whose channels count; times are by shape, tokens."""

    def mean(tile: Any) -> float:
        each = len(by_tile[tile]) // len(SHAPES)
        times = [us for i, us in enumerate(by_tile[tile]) if counts(SHAPES[i // each][0])]
        return math.inf if math.inf in by_tile[tile] else statistics.geometric_mean(times)

    return min(by_tile, key=mean)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=RAW)
    parser.add_argument("--out", type=Path, required=True, help="the directory of the tables")
    parser.add_argument("--arch", default="sm_90a", help="of the GPU that this runs on")
    arguments = parser.parse_args()
    whole, grouped = Scales(0, True), Scales(1, False)
    compile_all([(CANDIDATES, whole), (GROUPED, grouped)], arguments.arch)
    tables = {
        "whole": tune("fast", CANDIDATES, whole, False),
        "grouped": tune("paper", GROUPED, grouped, False),
    }
    write(arguments.out / "tiles.json", tables)
    if arguments.arch != "sm_90a":
        return
    strips = {0: STRIPS}
    compile_all([(SKINNY, whole), (SKINNY_GROUPED, grouped), (strips, whole), (strips, grouped)], "sm_90a")
    tables = {
        "whole": tune("fast", SKINNY, whole, True),
        "grouped": tune("paper", SKINNY_GROUPED, grouped, True),
    }
    for profile, found in (("fast", tables["whole"]), ("paper", tables["grouped"])):
        leave_to_hopper(profile, found)
    skinny.TABLE = arguments.out / "skinny.json"
    write(skinny.TABLE, tables)
    skinny.table.cache_clear()
    skinny.choose.cache_clear()
    of_strips = {
        key: tune_strips.measure(PROFILES[profile], scales, SHAPES, NARROW)
        for key, profile, scales in (("whole", "fast", whole), ("grouped", "paper", grouped))
    }
    write(arguments.out / "strips.json", of_strips)


if __name__ == "__main__":
    main()
