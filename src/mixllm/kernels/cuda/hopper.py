"""Many tokens on Hopper (csrc/hopper.cu): when it is taken, in which tiles, and the operator.

Activations come from ops.quantize(..., tiled=True) as [G, T, 128]: for each 128 inputs a line a token: so
a tile's lines are one piece of memory, ready for wgmma. Inside a line the 4-byte words of each half are
transposed as a 4 x 4 matrix (wgmma's order of inputs against that of csrc/unpack.cuh), and its 16-byte pieces
are swizzled: piece ^ token % 8. Of float group scales with one scale a token they are unsigned, 128 too
much, and behind them are lines with the sums of groups: [G + ceil(G / 16), T, 128].
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache

import torch
from torch import Tensor

from mixllm.kernels.cuda.arguments import Shape, gemm_arguments
from mixllm.kernels.cuda.launch import Kernel, device, kernel
from mixllm.kernels.cuda.operator import fake, operator
from mixllm.kernels.cuda.tiles import Scales

ROWS = 128
# From so many tokens on what csrc/skinny.cu leaves (mixllm.kernels.cuda.skinny.choose).
LEAST_TOKENS = 17
# Tokens whose tiles run at one time, so that they stay in L2.
BAND = 2048


@dataclass(frozen=True)
class HopperTile:
    """128 rows x bn tokens and a ring of stages; cut: what fills no whole wave is shared out along K."""

    bn: int
    stages: int
    cut: bool

    @property
    def threads(self) -> int:
        return 384

    def macros(self) -> dict[str, int]:
        return {"BN": self.bn, "STAGES": self.stages}

    def shared_bytes(self, scales: Scales) -> int:
        """As csrc/hopper_ring.cuh lays it out."""
        meta = ROWS // 16 * (16 + (0, 32, 64)[scales.weight]) + (0 if scales.token else self.bn * 4)
        notes = self.bn * 8 + ROWS * 20 + 64 + 24
        return self.stages * ((self.bn + ROWS) * 128 + meta + 16) + 2 * (32 * 272 + notes)

    def tiles(self, tokens: int, rows16: int) -> int:
        return -(-rows16 * 16 // ROWS) * -(-tokens // self.bn)

    def split(self, tiles: int, blocks: int) -> int:
        """How many are cut into equal shares: those that fill no whole wave, and a wave for company."""
        rest = tiles % blocks
        return rest + blocks * (tiles >= blocks) if self.cut and rest else 0


STAGES = {256: 4, 192: 5, 128: 6, 64: 8}
TILES = {
    key: [HopperTile(bn, STAGES[bn], cut) for bn in sizes for cut in (False, True)]
    for key, sizes in {"whole": (256, 192, 128, 64), "grouped": (256, 128, 64)}.items()
}
# Microseconds on an H200, fitted to the benchmark's shapes at 192 to 1,024 tokens: a stage, what a tile takes
# beside its stages, and handing partial sums over. By (scales.key, scales.token). ("grouped", True): a stage
# and a sixteenth of one of zero points.
TIMES = {
    ("whole", True): {
        256: (0.689, 4.2, 10.4),
        192: (0.521, 3.2, 6.6),
        128: (0.417, 2.0, 5.0),
        64: (0.341, 1.1, 3.9),
    },
    ("grouped", True): {256: (0.949, 4.3, 9.8), 128: (0.491, 2.9, 4.7), 64: (0.419, 1.6, 6.5)},
    ("grouped", False): {256: (1.368, 5.9, 5.7), 128: (0.764, 3.1, 4.2), 64: (0.488, 2.0, 3.9)},
}

# So much more does handing over take for few tokens, whose tiles are all cut, into more pieces (integers).
FEW_TOKENS = 128
FEW_HANDING = {64: 1.1, 128: 4.1}


def takes(index: int, scales: Scales, tokens: int) -> bool:
    """Whether so many tokens go this way on a GPU."""
    return tokens >= LEAST_TOKENS and device(index).capability == (9, 0)


@lru_cache(4096)
def choose(scales: Scales, tokens: int, rows16: int, groups: int, blocks: int) -> HopperTile:
    """The tile that should be done first; the first of equals. rows16: 16-row tiles of both widths."""

    def cost(tile: HopperTile) -> float:
        stage, beside, handing = TIMES[scales.key, scales.token][tile.bn]
        tiles = tile.tiles(tokens, rows16)
        waves = -(-tiles // blocks)
        if not tile.split(tiles, blocks):
            return waves * (groups * stage + beside)
        if tokens <= FEW_TOKENS and scales.key == "whole":
            handing += FEW_HANDING.get(tile.bn, 0.0)
        return tiles / blocks * groups * stage + waves * beside + handing

    return min(TILES[scales.key], key=cost)


@cache
def product(index: int, scales: Scales, tile: HopperTile) -> Kernel:
    macros = {**tile.macros(), **scales.macros()}
    return kernel("hopper.cu", "mixed_gemm", tuple(macros.items()), index, tile.shared_bytes(scales))


def gemm_into(
    y: Tensor, codes: Tensor, x_scales: Tensor, sums: Tensor, flags: Tensor, weight: list[Tensor],
    bias: Tensor | None, scales: Scales, group: int, tile: HopperTile,
) -> Tensor:  # fmt: skip
    """The kernel with a given tile -> where it hands partial sums on. weight: codes8, codes4, scales8,
    scales4, rows, row_scales, blocks (blocks.py)."""
    codes8, codes4 = weight[:2]
    target = device(y.device.index)
    groups, tokens = codes4.shape[1], codes.shape[1]
    blocks = target.multiprocessors
    cut = tile.split(tile.tiles(tokens, len(codes8) + len(codes4)), blocks)
    partials = torch.empty(blocks * ROWS * tile.bn if cut else 0, dtype=torch.int32, device=y.device)
    shape = Shape(tokens, len(codes8), len(codes4), groups, cut, 1, 1, BAND // tile.bn)
    product(target.index, scales, tile).launch(
        blocks,
        tile.threads,
        gemm_arguments(y, codes, x_scales, sums, partials, flags, weight, bias, group, shape),
    )
    return partials


def best(codes: Tensor, weight: list[Tensor], scales: Scales) -> HopperTile:
    """The tile for codes [.., T, 128]."""
    blocks = device(codes.device.index).multiprocessors
    return choose(scales, codes.shape[1], len(weight[0]) + len(weight[1]), weight[1].shape[1], blocks)


@operator("mixllm::gemm_many", ("flags",))
def gemm_many(
    codes: Tensor, x_scales: Tensor, sums: Tensor, flags: Tensor, weight: list[Tensor], bias: Tensor | None,
    channels: int, dtype: torch.dtype, weight_scales: int, group: int,
) -> Tensor:  # fmt: skip
    """Quantized activations, tiled, and summed as `sums` says, times a mixed weight -> y [T, channels]; flags
    are 0 before and after."""
    y = codes.new_empty((codes.shape[1], channels), dtype=dtype)
    scales = Scales(weight_scales, group == 0)
    with torch.cuda.device(y.device):
        tile = best(codes, weight, scales)
        gemm_into(y, codes, x_scales, sums, flags, weight, bias, scales, group, tile)
    return y


@fake("mixllm::gemm_many")
def _gemm_many_like(
    codes: Tensor, x_scales: Tensor, sums: Tensor, flags: Tensor, weight: list[Tensor], bias: Tensor | None,
    channels: int, dtype: torch.dtype, weight_scales: int, group: int,
) -> Tensor:  # fmt: skip
    return codes.new_empty((codes.shape[1], channels), dtype=dtype)
