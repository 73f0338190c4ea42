"""Few tokens on Hopper (csrc/skinny.cu): when it is taken, in which tiles, and the operator.

Activations are in the order of mixllm.kernels.cuda.hopper: [G, T, 128]. So few that a block has room for all
of them come in rows, for strips.py.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

import torch
from torch import Tensor

from mixllm.config import GROUP_SIZE
from mixllm.errors import MixllmError
from mixllm.kernels.cuda import strips
from mixllm.kernels.cuda.arguments import Shape, gemm_arguments
from mixllm.kernels.cuda.launch import Kernel, device, kernel
from mixllm.kernels.cuda.operator import fake, operator
from mixllm.kernels.cuda.rows import Row, fitting, read
from mixllm.kernels.cuda.strips import StripTile
from mixllm.kernels.cuda.tiles import Scales

TABLE = Path(__file__).with_name("skinny.json")


@dataclass(frozen=True)
class SkinnyTile:
    """bm rows x bn tokens, stages of wk slots shared by kg sets of warps; blocks for each SM, and how many it
    has room for."""

    bm: int
    bn: int
    wk: int
    kg: int
    stages: int
    blocks: int
    room: int
    sets: int = 2

    @property
    def source(self) -> str:
        return "skinny.cu"

    @property
    def threads(self) -> int:
        return self.bm * 2 * self.kg + 32

    def macros(self) -> dict[str, int]:
        sizes = {
            "BM": self.bm,
            "BN": self.bn,
            "WK": self.wk,
            "KG": self.kg,
            "SETS": self.sets,
        }
        return {**sizes, "STAGES": self.stages, "BLOCKS": self.room}

    def shared_bytes(self, scales: Scales) -> int:
        """As csrc/skinny_ring.cuh lays it out."""
        meta = self.bm // 16 * (16 + (0, 32, 64)[scales.weight]) + (0 if scales.token else self.bn * 4)
        stage = self.wk * (self.bn * 128 + self.bm * 64 + meta) + 16
        sums = 2 * (self.kg - 1) * self.bm * self.bn * 4
        return (self.stages * stage + self.bn * 8 + 15) // 16 * 16 + sums + 16


@cache
def table(key: str) -> tuple[Row[SkinnyTile], ...]:
    """In order of tokens; the first row that has a product's sizes is taken."""
    return read(json.loads(TABLE.read_text())[key], SkinnyTile)


def most_tokens(scales: Scales) -> int:
    """That go this way at all; some sizes leave it before."""
    return table(scales.key)[-1].tokens


@lru_cache(4096)
def choose(scales: Scales, tokens: int, channels: int, groups: int) -> SkinnyTile | None:
    """The tile for a product; None where hopper.cu is faster. groups: of 128 inputs."""
    return next(fitting(table(scales.key), tokens, channels, groups), None)


def takes(index: int, scales: Scales, tokens: int, channels: int, groups: int) -> bool:
    """Whether a product of so many tokens goes this way on a GPU."""
    if tokens == 0 or choose(scales, tokens, channels, groups) is None:
        return False
    return device(index).capability == (9, 0)


def product(index: int, scales: Scales, tile: SkinnyTile | StripTile) -> Kernel:
    macros = {**tile.macros(), **scales.macros()}
    return kernel(tile.source, "mixed_gemm", tuple(macros.items()), index, tile.shared_bytes(scales))


def gemm_into(
    y: Tensor, codes: Tensor, x_scales: Tensor, sums: Tensor, flags: Tensor, weight: list[Tensor],
    bias: Tensor | None, scales: Scales, group: int, tile: SkinnyTile | StripTile,
) -> None:  # fmt: skip
    """The kernel with a given tile; for a StripTile codes are [T, 128 G]. weight: codes8, codes4, scales8,
    scales4, rows, row_scales."""
    codes8, codes4 = weight[:2]
    target = device(y.device.index)
    in_rows = isinstance(tile, StripTile)
    tokens, groups = (len(codes), codes.shape[1] // GROUP_SIZE) if in_rows else (codes.shape[1], len(codes))
    run = product(target.index, scales, tile)
    if isinstance(tile, StripTile):
        blocks = run.blocks_alone(tile.peers, tile.threads)
    else:
        blocks = target.multiprocessors * tile.blocks
    rows = tile.bm // 16
    tiles = -(-len(codes8) // rows) + -(-len(codes4) // rows)
    cut = 0 if in_rows else tiles if tiles < 2 * blocks else tiles % blocks
    if 2 * blocks * groups * 2 * blocks >= 2**31:
        raise MixllmError(f"mixed linear: {groups * 128} inputs are more than the schedule's 32 bits hold")
    if blocks * tile.bm // 16 > flags.numel():
        raise MixllmError(f"mixed linear: {blocks} blocks need more than {flags.numel()} flags")
    partials = torch.empty(blocks * tile.bm * tile.bn if cut else 0, dtype=torch.int32, device=y.device)
    shape = Shape(tokens, len(codes8), len(codes4), groups, cut, 1, 1, 1)
    run.launch(
        blocks,
        tile.threads,
        gemm_arguments(y, codes, x_scales, sums, partials, flags, weight, bias, group, shape),
    )


@operator("mixllm::gemm_few", ("flags",))
def gemm_few(
    codes: Tensor, x_scales: Tensor, sums: Tensor, flags: Tensor, weight: list[Tensor], bias: Tensor | None,
    channels: int, dtype: torch.dtype, weight_scales: int, group: int,
) -> Tensor:  # fmt: skip
    """Quantized activations times a mixed weight -> y [T, channels]; flags are 0 before and after.

    codes: tiled, or in rows where csrc/strips.cu has room for so many."""
    in_rows = codes.dim() == 2
    tokens, groups = (len(codes), codes.shape[1] // GROUP_SIZE) if in_rows else (codes.shape[1], len(codes))
    y = codes.new_empty((tokens, channels), dtype=dtype)
    if y.numel():
        scales = Scales(weight_scales, group == 0)
        tile: SkinnyTile | StripTile | None = choose(scales, tokens, channels, groups)
        if in_rows:
            tile = strips.choose(scales, group, tokens, channels, groups)
        if tile is None:
            elsewhere = "must be tiled" if in_rows else "are gemm_many's"
            raise MixllmError(f"gemm_few: {tokens} tokens of {groups * GROUP_SIZE} inputs {elsewhere}")
        with torch.cuda.device(y.device):
            gemm_into(y, codes, x_scales, sums, flags, weight, bias, scales, group, tile)
    return y


@fake("mixllm::gemm_few")
def _gemm_few_like(
    codes: Tensor, x_scales: Tensor, sums: Tensor, flags: Tensor, weight: list[Tensor], bias: Tensor | None,
    channels: int, dtype: torch.dtype, weight_scales: int, group: int,
) -> Tensor:  # fmt: skip
    return codes.new_empty((codes.shape[0 if codes.dim() == 2 else 1], channels), dtype=dtype)
