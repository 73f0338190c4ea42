"""The part of tune.py for csrc/strips.cu: times of its tiles, and which rows of its tables they make."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from candidates import STRIPS
from kernels import copies, random_tensors
from timing import timed
from torch import Tensor

from mixllm.config import GROUP_SIZE, Format
from mixllm.kernels.cuda import ops, quantizing, skinny, strips
from mixllm.kernels.cuda.strips import StripTile
from mixllm.kernels.cuda.tiles import Scales

Shape = tuple[int, int]
Table = list[dict[str, int]]
Times = dict[StripTile, dict[Shape, float]]  # microseconds; a tile without room for a shape lacks it
TOKENS = (1, 2, 4, 8, 16)


def rows(times: Times, otherwise: Mapping[Shape, float]) -> list[StripTile]:
    """In which order to try the tiles: what spares most, then what does for shapes that it has no room for.

    otherwise: microseconds without any."""
    left, found = set(otherwise), list[StripTile]()
    while left:

        def spared(tile: StripTile, left: Iterable[Shape] = tuple(left)) -> float:
            return math.prod(otherwise[s] / times[tile].get(s, otherwise[s]) for s in left)

        best = max(times, key=spared, default=None)
        if best is None or spared(best) <= 1:
            break
        found.append(best)
        left -= set(times[best])
    return found


def table(by_tokens: Mapping[int, tuple[Times, Mapping[Shape, float]]], narrow: int) -> Table:
    """Rows of strips.json; layers of at most `narrow` channels apart where they want other tiles.

    Fewer tokens have rows of their own only where those differ."""
    made, after = Table(), Table()
    for tokens, (times, otherwise) in sorted(by_tokens.items(), reverse=True):
        both = []
        for inside in (True, False):
            kept = {shape: us for shape, us in otherwise.items() if (shape[0] <= narrow) == inside}
            of_kind = {tile: {s: us for s, us in by.items() if s in kept} for tile, by in times.items()}
            both.append([asdict(tile) for tile in rows(of_kind, kept)])
        first = [{"channels": narrow, **tile} for tile in both[0]] if both[0] != both[1] else []
        now = [*first, *both[1]]
        if now != after:
            made = [{"tokens": tokens, **row} for row in now] + made
            after = now
    return made


def measure(format: Format, scales: Scales, shapes: Iterable[Shape], narrow: int) -> dict[str, Table]:
    """A key of strips.json. The tables of skinny.cu are tuned before: that is what a tile must beat."""
    found: dict[str, dict[int, tuple[Times, dict[Shape, float]]]] = {
        use: {t: ({tile: {} for tile in STRIPS if tile.bn >= t}, {}) for t in TOKENS}
        for use in ("fresh", "given", "after")
    }
    for shape in shapes:
        weights = copies(random_tensors(format, *shape, 0.1))
        for t in TOKENS:
            of_shape(format, scales, weights, shape, t, {use: by[t] for use, by in found.items()})
    return {use: table(by_tokens, narrow) for use, by_tokens in found.items()}


def of_shape(
    format: Format, scales: Scales, weights: list[list[Tensor]], shape: Shape, tokens: int,
    found: dict[str, tuple[Times, dict[Shape, float]]],
) -> None:  # fmt: skip
    """Adds a layer's times with so many tokens to what is found of each use."""
    n, k = shape
    group = 0 if format.activation_group == "token" else format.activation_group
    rotate, groups = format.rotation == "hadamard", -(-k // GROUP_SIZE)
    x = torch.randn(tokens, k, dtype=torch.bfloat16, device="cuda")
    y = torch.empty(tokens, n, dtype=torch.bfloat16, device="cuda")
    tiled, in_rows = (ops.quantize(x, rotate, group, tiled) for tiled in (True, False))

    def product(buffers: Any, tile: Any, weight: list[Tensor]) -> None:
        skinny.gemm_into(y, *buffers, weight, None, scales, group, tile)

    def both(buffers: Any, tile: Any, weight: list[Tensor]) -> None:
        quantizing.quantize_into(x, rotate, group, *buffers)
        product(buffers, tile, weight)

    def alone(tile: Any, prologue: Any, weight: list[Tensor]) -> None:
        strips.linear_into(y, x, weight, None, scales, rotate, tile, prologue)

    def time(run: Callable[[list[Tensor]], None]) -> float:
        return timed([partial(run, weight) for weight in weights])

    other = skinny.choose(scales, tokens, n, groups)
    found["given"][1][shape] = time(partial(product, tiled, other))
    best = found["after"][1][shape] = time(partial(both, tiled, other))
    x_scales = 0 if scales.token else in_rows[1].nbytes
    for tile in found["after"][0]:
        if tile.stages(scales, tokens, groups, x_scales) < strips.LEAST_STAGES:
            continue
        found["given"][0][tile][shape] = time(partial(product, in_rows, tile))
        found["after"][0][tile][shape] = us = time(partial(both, in_rows, tile))
        best = min(best, us)
        prologue = tile.prologue(tokens, groups) if scales.token else None
        if prologue:
            found["fresh"][0][tile][shape] = time(partial(alone, tile, prologue))
    found["fresh"][1][shape] = best
    for use, (times, without) in found.items():
        fastest = min((by[shape] for by in times.values() if shape in by), default=math.nan)
        print(use, f"{n}x{k} T={tokens}", round(without[shape], 1), round(fastest, 1), flush=True)
