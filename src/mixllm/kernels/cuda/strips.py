"""csrc/strips.cu, which serves few tokens on Hopper where a block has room for them: shapes and launches.

With one scale a token it can quantize activations by itself.
"""

from __future__ import annotations

import ctypes
import json
from ctypes import c_float, c_int, c_longlong, c_void_p
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

import torch
from torch import Tensor

from mixllm.config import GROUP_SIZE
from mixllm.errors import MixllmError
from mixllm.kernels.cuda.arguments import TYPES, Gemm, Shape, gemm_arguments
from mixllm.kernels.cuda.launch import Kernel, device, kernel
from mixllm.kernels.cuda.operator import fake, operator
from mixllm.kernels.cuda.rows import Row, fitting, read
from mixllm.kernels.cuda.tiles import Scales

TABLE = Path(__file__).with_name("strips.json")

Prologue = tuple[int, int]  # tokens that it has place for, vectors of 8 inputs a thread
# Of an SM's shared memory what one of two blocks can have beside a few of the quantizer's, and one alone.
HALF, WHOLE = 113664, 232448
WRITERS = 2  # warps of a block that write


class _Given(ctypes.Structure):
    _fields_ = [
        ("product", Gemm), ("x", c_void_p), ("x_pitch", c_longlong), ("inputs", c_int),
        ("tail_block", c_int), ("tail_norm", c_float), ("aligned", c_int),
    ]  # fmt: skip


@dataclass(frozen=True)
class StripTile:
    """16 rows x bn tokens for `warps`, stages of `slots`, in `shared` bytes of a block, which has two chunks
    of so many groups of activations; chunk 0: all of them. So many `peers`, blocks of a cluster, bring
    activations for each other. held: groups of activations that a warp has in registers; of a chunk all, and
    then one chunk at a time waits in shared memory. head: stages that may be on their way before activations;
    0: 48 KB of them, but two."""

    bn: int
    warps: int
    slots: int
    shared: int
    chunk: int = 0
    peers: int = 1
    held: int = 0
    head: int = 0

    bm = 16
    blocks = 1

    @property
    def source(self) -> str:
        return "strips.cu"

    @property
    def threads(self) -> int:
        return 32 * (self.warps + WRITERS + 2)

    def macros(self) -> dict[str, int]:
        sizes = {"BN": self.bn, "WARPS": self.warps, "SLOTS": self.slots, "CHUNK": self.chunk, "QUANTIZE": 0}
        blocks = 2 if self.shared <= HALF else 1
        rest = {"SHARED": self.shared, "BLOCKS": blocks, "PEERS": self.peers, "HELD": self.held}
        return {**sizes, **rest, "HEAD": self.head or max(2, 48 // self.slots)}

    def shared_bytes(self, scales: Scales) -> int:
        return self.shared

    def stages(self, scales: Scales, tokens: int, groups: int, x_scale_bytes: int = 0) -> int:
        """As csrc/strips.cu divides what X and its scales leave; none where the warps can't hold X."""
        if self.held and not self.chunk and groups > self.held * self.warps:
            return 0
        sums = (2 * self.warps + (8 if self.chunk else 0)) * 64 * self.bn
        notes = 320 + self.bn * 8 + WRITERS * 1024 + self.warps * 8 + sums
        rooms = 2 if self.chunk and not self.held else 1
        x = rooms * tokens * ((self.chunk or groups) * 128 + 64)
        ring = _up(_up(notes) + x + x_scale_bytes)
        return (self.shared - ring) // (self.slots * (1040 + (0, 32, 64)[scales.weight]))

    def prologue(self, tokens: int, groups: int) -> Prologue | None:
        """Tokens and vectors a thread for which the kernel quantizes; None where that is too much for it."""
        places = next((n for n in (1, 2, 4, 8) if tokens <= n), 0)
        if not places or self.chunk or self.peers > 1:
            return None
        each = 32 * self.warps // places
        vectors = next((n for n in (1, 2, 4) if groups * 16 <= n * each), 0)
        return (places, vectors) if vectors else None


def _up(size: int) -> int:
    return -(-size // 128) * 128


LEAST_STAGES = 3


@cache
def table(key: str, use: str) -> tuple[Row[StripTile], ...]:
    """use "fresh": where the kernel quantizes; "given": where it could, but gets activations quantized;
    "after": where it can't, so that a quantizer comes between two products. The first row is taken that has a
    product's sizes and room for its activations.

    With two blocks on an SM the next product's weights are on their way; but with a quantizer between two
    products one block is faster (docs/kernels.md)."""
    return read(json.loads(TABLE.read_text())[key][use], StripTile)


def tiles(key: str) -> set[StripTile]:
    """All that the tables hold."""
    return {row.tile for use in ("fresh", "given", "after") for row in table(key, use)}


@lru_cache(4096)
def quantizes(scales: Scales, tokens: int, channels: int, groups: int) -> tuple[StripTile, Prologue] | None:
    """Tile and prologue with which the kernel quantizes so many tokens; None where it doesn't.

    groups: of 128 inputs."""
    for tile in fitting(table(scales.key, "fresh"), tokens, channels, groups) if scales.token else ():
        prologue = tile.prologue(tokens, groups)
        if prologue and tile.stages(scales, tokens, groups) >= LEAST_STAGES:
            return tile, prologue
    return None


@lru_cache(4096)
def choose(scales: Scales, group: int, tokens: int, channels: int, groups: int) -> StripTile | None:
    """The tile for activations that are quantized before; None where there is no room for X and enough of a
    ring, or skinny.cu is faster.

    group: inputs that share a scale, 0: all of a token's; groups: of 128 inputs."""
    x_scales = 0 if group == 0 else -(-groups * GROUP_SIZE // group) * -(-tokens // 4) * 16
    use = "given" if quantizes(scales, tokens, channels, groups) else "after"
    fits = fitting(table(scales.key, use), tokens, channels, groups)
    return next((t for t in fits if t.stages(scales, tokens, groups, x_scales) >= LEAST_STAGES), None)


@cache
def product(
    index: int, scales: Scales, tile: StripTile, prologue: Prologue, dtype: torch.dtype, rotate: bool,
    tail: bool,
) -> Kernel:  # fmt: skip
    """The kernel that quantizes by itself."""
    own = {"QUANTIZE": prologue[0], "VECTORS": prologue[1], "INPUT": TYPES[dtype], "ROTATE": int(rotate)}
    macros = {**tile.macros(), **scales.macros(), **own, "TAIL": int(tail)}
    return kernel(tile.source, "mixed_gemm", tuple(macros.items()), index, tile.shared)


def linear_into(
    y: Tensor, x: Tensor, weight: list[Tensor], bias: Tensor | None, scales: Scales, rotate: bool,
    tile: StripTile, prologue: Prologue,
) -> None:  # fmt: skip
    """x [T, K] times a mixed weight, in one launch."""
    codes8, codes4 = weight[:2]
    target = device(y.device.index)
    tokens, inputs = x.shape
    tail = inputs % GROUP_SIZE
    block = max(tail & -tail, 1)
    aligned = inputs % 8 == 0 and x.data_ptr() % 16 == 0 and x.stride(0) * x.element_size() % 16 == 0
    run = product(target.index, scales, tile, prologue, x.dtype, rotate, tail > 0)
    shape = Shape(tokens, len(codes8), len(codes4), codes4.shape[1], 0, 1, 1, 1)
    gemm = gemm_arguments(y, None, None, None, None, None, weight, bias, 0, shape)
    given = _Given(gemm, x.data_ptr(), x.stride(0), inputs, block, block**-0.5, int(aligned))
    run.launch(target.multiprocessors, tile.threads, given)


@operator("mixllm::linear_few")
def linear_few(
    x: Tensor, weight: list[Tensor], bias: Tensor | None, channels: int, weight_scales: int, rotate: bool
) -> Tensor:  # fmt: skip
    """x [T, K], not quantized, times a mixed weight, one scale a token -> y [T, channels].

    Raises MixllmError for what `quantizes` does not take."""
    if x.stride(1) != 1 and x.shape[1] > 1:
        x = x.contiguous()
    y = x.new_empty((len(x), channels))
    scales = Scales(weight_scales, True)
    found = quantizes(scales, len(x), channels, weight[1].shape[1])
    if found is None:
        raise MixllmError(f"linear_few: {len(x)} tokens of {x.shape[1]} inputs have no room; quantize first")
    with torch.cuda.device(y.device):
        linear_into(y, x, weight, bias, scales, rotate, *found)
    return y


@fake("mixllm::linear_few")
def _linear_few_like(
    x: Tensor, weight: list[Tensor], bias: Tensor | None, channels: int, weight_scales: int, rotate: bool
) -> Tensor:  # fmt: skip
    return x.new_empty((len(x), channels))
