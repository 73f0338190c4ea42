"""The shapes that the product kernel is compiled in, and which one a layer and a number of tokens take."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from mixllm.config import Format

TABLE = Path(__file__).with_name("tiles.json")


@dataclass(frozen=True)
class Tile:
    """bm rows x bn tokens for wm x wn x wk warps; see csrc/gemm.cu. blocks reside on one SM."""

    bm: int
    bn: int
    wm: int
    wn: int
    wk: int
    stages: int
    blocks: int
    stream: bool = False  # csrc/decode.cu, where wn and wk mean something else

    @property
    def threads(self) -> int:
        return 32 * self.wm * self.wn * (1 if self.stream else self.wk)

    @property
    def source(self) -> str:
        return "decode.cu" if self.stream else "gemm.cu"

    def macros(self) -> dict[str, int]:
        macros = {name.upper(): value for name, value in asdict(self).items() if name != "stream"}
        if self.stream and self.threads <= 256 and self.bn <= 32:
            # Registers for two blocks: the next kernel's get in beside this one's and fetch their weights.
            macros["BLOCKS"] = 2
        return macros


@dataclass(frozen=True)
class Scales:
    """Scales in the main loop; weight 0: integers (and one scale a row), 1: float16, 2: float32 a group."""

    weight: int
    token: bool

    @classmethod
    def of(cls, format: Format, float32: bool) -> Scales:
        weight = 0 if format.weight_scale != "group" else 2 if float32 else 1
        return cls(weight, format.activation_group == "token")

    @property
    def key(self) -> str:
        return "whole" if self.weight == 0 and self.token else "grouped"

    @property
    def unsigned(self) -> bool:
        """Whether csrc/hopper.cu multiplies unsigned operands (csrc/hopper_scales.cuh)."""
        return self.weight > 0 and self.token

    def macros(self) -> dict[str, int]:
        return {"WEIGHT_SCALES": self.weight, "TOKEN_SCALES": int(self.token)}


def shared_bytes(tile: Tile, scales: Scales) -> int:
    """Shared memory of a block, as csrc/gemm.cu lays it out."""
    meta = 16 + (0, 32, 64)[scales.weight]
    corners = tile.wm * tile.wn * 8 * (tile.bm // tile.wm + 4) * 4
    if tile.stream:
        rows = tile.bm // tile.wm // 16
        ring = tile.stages * tile.wk * rows * (1024 + meta)
        sums = 2 * (tile.wn - 1) * tile.bm * tile.bn * 4
        barriers = tile.wm * tile.wn * tile.stages * 8
        return tile.wm * tile.wn * ring + tile.wm * 8 * (tile.bm // tile.wm + 4) * 4 + sums + barriers
    slot = tile.bm * 64 + tile.bn * 128 + tile.bm // 16 * meta + (0 if scales.token else tile.bn * 4)
    sums = (tile.wk - 1) * tile.bm * tile.bn * 4
    return tile.stages * tile.wk * slot + max(sums, corners)


@cache
def table(key: str) -> tuple[tuple[int, Tile], ...]:
    """(most tokens, tile) in order of tokens; the last serves any number."""
    rows = json.loads(TABLE.read_text())[key]
    return tuple((row.pop("tokens"), Tile(**row)) for row in rows)


def choose(scales: Scales, tokens: int, limit: int) -> Tile:
    """The table's tile for so many tokens whose shared memory fits the device's limit a block in bytes.

    Stages are given up where it doesn't: GPUs from sm_86 on have 99 KB where sm_80 and sm_90 have more.
    """
    return _fitting(table(scales.key), scales, tokens, limit)


def choose_whole(scales: Scales, tokens: int, limit: int) -> Tile:
    """As choose, among the tiles of csrc/gemm.cu."""
    rows = tuple((most, tile) for most, tile in table(scales.key) if not tile.stream)
    return _fitting(rows, scales, tokens, limit)


def _fitting(rows: tuple[tuple[int, Tile], ...], scales: Scales, tokens: int, limit: int) -> Tile:
    tile = next((tile for most, tile in rows if tokens <= most), rows[-1][1])
    while shared_bytes(tile, scales) > limit and tile.stages > 2:
        tile = Tile(**{**asdict(tile), "stages": tile.stages - 1})
    return tile
