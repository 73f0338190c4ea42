"""Choose the tile for each number of tokens and write the table that dispatch reads.

    python benchmarks/tune.py --out src/mixllm/kernels/cuda/tiles.json

For each bucket of tokens every candidate runs on a few layer shapes with 10 % 8-bit rows; the least geometric
mean of the times wins. A candidate whose result differs from the first one's is left out and reported.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
from kernels import RAW, copies, random_tensors
from timing import timed

from mixllm.config import PROFILES
from mixllm.kernels.cuda import ops
from mixllm.kernels.cuda.build import cubin
from mixllm.kernels.cuda.tiles import Scales, Tile

Quantized = tuple[Tensor, Tensor, Tensor, Tensor]

SHAPES = [(6144, 4096), (28672, 4096), (4096, 14336), (8192, 8192)]
ANY = 1_000_000_000
BUCKETS = {8: (1, 8), 16: (16,), 32: (32,), 64: (64,), 128: (128,), 256: (256,), ANY: (1024,)}


def stream(bm: int, bn: int, wm: int, wn: int, wk: int, stages: int, blocks: int) -> Tile:
    return Tile(bm, bn, wm, wn, wk, stages, blocks, True)


def decoding(bn: int) -> list[Tile]:
    return [
        Tile(64, bn, 4, 1, 4, 4, 1),
        stream(64, bn, 2, 4, 1, 6, 1),
        stream(64, bn, 2, 8, 1, 3, 1),
        stream(64, bn, 2, 8, 1, 4, 1),
        stream(128, bn, 2, 4, 1, 3, 1),
        stream(128, bn, 4, 4, 1, 4, 1),
    ]


CANDIDATES = {
    8: decoding(8),
    16: decoding(16),
    32: [Tile(64, 32, 2, 1, 4, 3, 1), Tile(128, 32, 8, 1, 1, 4, 2), Tile(64, 32, 4, 1, 2, 3, 2)],
    64: [Tile(64, 64, 2, 2, 2, 3, 2), Tile(128, 64, 4, 2, 1, 4, 2), Tile(64, 64, 2, 2, 1, 4, 3)],
    128: [Tile(128, 64, 2, 2, 1, 4, 3), Tile(128, 128, 2, 2, 1, 4, 2), Tile(64, 64, 2, 2, 1, 4, 3)],
    256: [Tile(128, 64, 2, 2, 1, 4, 3), Tile(256, 128, 4, 2, 1, 5, 1)],
    ANY: [Tile(128, 64, 2, 2, 1, 4, 3), Tile(256, 128, 4, 2, 1, 5, 1), Tile(128, 128, 2, 2, 1, 4, 2)],
}
# With float32 sums beside the int32 ones a warp has no registers for a tile of 64 x 64.
GROUPED = {
    8: [t for t in decoding(8) if t.threads <= 256],
    16: [t for t in decoding(16) if t.threads <= 256],
    32: [Tile(64, 32, 4, 1, 2, 3, 2), Tile(128, 32, 8, 1, 1, 4, 2)],
    64: [Tile(64, 64, 2, 2, 1, 4, 2), Tile(128, 64, 4, 2, 1, 4, 1)],
    128: [Tile(128, 64, 4, 2, 1, 4, 1), Tile(64, 128, 2, 2, 1, 3, 2)],
    256: [Tile(64, 128, 2, 2, 1, 3, 2), Tile(128, 64, 4, 2, 1, 4, 1)],
    ANY: [Tile(64, 128, 2, 2, 1, 3, 2), Tile(128, 128, 4, 2, 1, 4, 1)],
}


def compile_one(job: tuple[Tile, Scales, str]) -> None:
    tile, scales, arch = job
    cubin(tile.source, {**tile.macros(), **scales.macros()}, arch)


def compile_all(kinds: list[tuple[dict[int, list[Tile]], Scales]], arch: str) -> None:
    jobs = {(t, scales, arch) for candidates, scales in kinds for tiles in candidates.values() for t in tiles}
    with ProcessPoolExecutor(mp_context=get_context("fork")) as pool:
        list(pool.map(compile_one, jobs))


def launch(
    y: Tensor, quantized: Quantized, scales: Scales, group: int, tile: Tile, weight: list[Tensor]
) -> None:
    ops.gemm_into(y, *quantized, weight, None, scales, group, tile)


def tune(profile: str, candidates: dict[int, list[Tile]], scales: Scales) -> list[dict[str, int]]:
    format = PROFILES[profile]
    group = 0 if format.activation_group == "token" else format.activation_group
    times: dict[int, dict[Tile, list[float]]] = {b: {t: [] for t in ts} for b, ts in candidates.items()}
    for n, k in SHAPES:
        weights = copies(random_tensors(format, n, k, 0.1))
        for bucket, tokens in BUCKETS.items():
            for t in tokens:
                x = torch.randn(t, k, dtype=torch.bfloat16, device="cuda")
                quantized = ops.quantize(x, format.rotation == "hadamard", group)
                first = None
                for tile, seen in times[bucket].items():
                    y = torch.full((t, n), math.nan, dtype=torch.bfloat16, device="cuda")
                    launch(y, quantized, scales, group, tile, weights[0])
                    first = y if first is None else first
                    largest = first.float().abs().max().item()
                    if not torch.allclose(first, y, rtol=2e-2, atol=1e-2 * largest):
                        print(f"{profile} {n}x{k} T={t}: {tile} is wrong", flush=True)
                        seen.append(math.inf)
                        continue

                    run = partial(launch, y, quantized, scales, group, tile)
                    seen.append(timed([partial(run, weight) for weight in weights]))
    rows = []
    for bucket, by_tile in times.items():
        mean = {
            tile: math.inf if math.inf in ts else statistics.geometric_mean(ts)
            for tile, ts in by_tile.items()
        }
        best = min(mean, key=lambda tile: mean[tile])
        for tile, ts in by_tile.items():
            mark = "*" if tile == best else ""
            print(profile, bucket, *asdict(tile).values(), [round(t, 1) for t in ts], mark, flush=True)
        rows.append({"tokens": bucket, **asdict(best)})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=RAW)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--arch", default="sm_90a", help="of the GPU that this runs on")
    arguments = parser.parse_args()
    whole, grouped = Scales(0, True), Scales(1, False)
    compile_all([(CANDIDATES, whole), (GROUPED, grouped)], arguments.arch)
    found = {"whole": tune("fast", CANDIDATES, whole), "grouped": tune("paper", GROUPED, grouped)}
    arguments.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
