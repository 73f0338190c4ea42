"""The two operations as torch sees them: quantize activations, multiply by a mixed weight.

They are plain torch operators with fake implementations, on the current stream of the tensors' device. A call
compiles nothing that mixllm.kernels.cuda.warm_up has compiled before, and tunes, prints and awaits nothing.
"""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_int, c_longlong, c_void_p
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from mixllm.config import GROUP_SIZE
from mixllm.errors import MixllmError
from mixllm.kernels.cuda.launch import Kernel, device, kernel
from mixllm.kernels.cuda.operator import fake, operator
from mixllm.kernels.cuda.tiles import Scales, Tile, choose, shared_bytes

TYPES = {torch.float16: 0, torch.bfloat16: 1, torch.float32: 2}
# One flag for each block of a product's grid, or each warp of a decoding one; no GPU has so many resident.
FLAGS = 4096
MOST_THREADS = 896
PART_THREADS = 256
# Tokens that clusters of blocks share, and how many blocks they may be where there are more than 16 tokens.
MOST_SHARED = 64
MOST_PARTS = 264
# From so many tokens on csrc/quantize_many.cu takes them, and short ones of up to 16 PART_THREADS inputs.
LEAST_MANY, LEAST_MANY_SHORT = 65, 257
# Threads of its blocks, inputs that one has of a token, tokens that a block can have at a time (as many as it
# has barriers), and whether a thread asks for the next one's inputs ahead.
MANY_THREADS, THREAD_INPUTS, MOST_TEAMS, MANY_AHEAD = 512, 64, 16, 1
BAND = 16
# Groups whose sums a line of csrc/hopper_floats.cuh has.
SUMS_A_LINE = 16


class _Quantize(ctypes.Structure):
    _fields_ = [
        ("x", c_void_p), ("codes", c_void_p), ("scales", c_void_p), ("sums", c_void_p), ("flags", c_void_p),
        ("x_pitch", c_longlong),
        ("inputs", c_int), ("padded", c_int), ("tokens", c_int),
        ("scale_pitch", c_int), ("flag_count", c_int),
        ("tail_block", c_int), ("tail_norm", c_float), ("aligned", c_int), ("rounds", c_int),
        ("other", c_void_p), ("epsilon", c_float),
    ]  # fmt: skip


class Outputs(ctypes.Structure):
    _fields_ = [
        ("rows", c_void_p), ("row_scales", c_void_p), ("x_sums", c_void_p), ("bias", c_void_p),
        ("y", c_void_p), ("channels", c_int), ("type", c_int),
    ]  # fmt: skip


class Shape(ctypes.Structure):
    _fields_ = [
        (name, c_int) for name in ("tokens", "rows8", "rows4", "groups", "split", "cost8", "cost4", "band")
    ]


class Gemm(ctypes.Structure):
    _fields_ = [
        ("codes8", c_void_p), ("codes4", c_void_p), ("scales8", c_void_p), ("scales4", c_void_p),
        ("x", c_void_p), ("x_scales", c_void_p), ("partials", c_void_p), ("flags", c_void_p),
        ("out", Outputs), ("shape", Shape), ("x_stride", c_int), ("x_group_shift", c_int),
        ("blocks", c_void_p),
    ]  # fmt: skip


@dataclass(frozen=True)
class Fused:
    """What the quantizer does first; kind 1: RMSNorm with the weight `other`, 2: SiLU(x) times `other`."""

    kind: int
    other: Tensor
    epsilon: float = 0.0


def quantize_into(
    x: Tensor, rotate: bool, group: int, codes: Tensor, scales: Tensor, sums: Tensor, flags: Tensor,
    fused: Fused | None = None,
) -> None:  # fmt: skip
    """The kernel behind `quantize`; group 0 is the whole token. The shape of codes gives their order."""
    tokens, inputs = x.shape
    padded = padded_inputs(inputs)
    target = device(x.device.index)
    tail = inputs % GROUP_SIZE
    block = max(tail & -tail, 1)
    width = 16 // x.element_size()
    other = None if fused is None else fused.other.data_ptr()
    aligned = x.data_ptr() % 16 == 0 and (other or 0) % 16 == 0 and x.stride(0) % width == 0
    arguments = _Quantize(
        x.data_ptr(), codes.data_ptr(), scales.data_ptr(), sums.data_ptr(), flags.data_ptr(),
        x.stride(0), inputs, padded, tokens, scales.shape[1], flags.numel(),
        block, block**-0.5, int(inputs % 8 == 0 and aligned), 1,
        other, 0.0 if fused is None else fused.epsilon,
    )  # fmt: skip
    kind = 0 if fused is None else fused.kind
    tiled = codes.dim() == 3
    summed = tiled and len(codes) > padded // GROUP_SIZE
    if tiled and kind == 0 and arguments.aligned and takes_many(x.dtype, tokens, padded):
        threads, blocks = many_shape(tokens, padded, target.multiprocessors)
        many = quantizer_of_many(target.index, x.dtype, rotate, tail > 0, group, summed)
        return many.launch(blocks, threads, arguments)
    shape = launch_shape(tokens, padded, target.capability >= (9, 0), group, tiled or kind > 0)
    vectors, threads, arguments.rounds, parts = shape
    run = quantizer(target.index, x.dtype, vectors, rotate, tail > 0, group, kind, tiled + summed, parts)
    run.launch(tokens * parts, threads, arguments)


def takes_many(dtype: torch.dtype, tokens: int, padded: int) -> bool:
    """Whether csrc/quantize_many.cu quantizes so many tokens of whole vectors, wanted tiled."""
    least = LEAST_MANY_SHORT if padded <= 16 * PART_THREADS else LEAST_MANY
    return dtype != torch.float32 and tokens >= least and padded <= THREAD_INPUTS * MANY_THREADS


def many_shape(tokens: int, padded: int, multiprocessors: int) -> tuple[int, int]:
    """Threads a block and blocks, one an SM: teams of warps, a token each at a time, as many as a block has
    room for, or fewer with equally many tokens."""
    team = -(-padded // (32 * THREAD_INPUTS)) * 32
    each = -(-tokens // multiprocessors)
    rounds = -(-each // min(MANY_THREADS // team, MOST_TEAMS))
    teams = -(-each // rounds)
    return team * teams, -(-tokens // (teams * rounds))


@cache
def quantizer_of_many(
    index: int, dtype: torch.dtype, rotate: bool, tail: bool, group: int, summed: bool
) -> Kernel:
    macros = many_macros(dtype, rotate, tail, group, summed)
    # Faster than blocks that wait beside the product before: these may all be on the few SMs free first.
    return kernel("quantize_many.cu", "quantize", tuple(macros.items()), index, many_shared(), early=False)


def many_shared() -> int:
    """Bytes of shared memory of a block of csrc/quantize_many.cu: the next token's inputs."""
    return MANY_AHEAD * MANY_THREADS * THREAD_INPUTS * 2


def many_macros(dtype: torch.dtype, rotate: bool, tail: bool, group: int, summed: bool) -> dict[str, int]:
    kind = {"INPUT": TYPES[dtype], "ROTATE": int(rotate), "TAIL": int(tail), "GROUP": group}
    return {**kind, "SUMMED": int(summed), "THREADS": MANY_THREADS, "AHEAD": MANY_AHEAD}


def launch_shape(
    tokens: int, padded: int, clusters: bool, group: int, heavy: bool
) -> tuple[int, int, int, int]:
    """Vectors of 8 a thread, threads a block, rounds, blocks a token: many threads for few tokens, else many
    vectors. Where blocks can be clusters few tokens are shared among small ones, a round each; but short
    tokens with one scale (group 0) are a block's each, which takes less than to meet for it. heavy: where
    codes are tiled, or something is fused, a block has no registers for more than two vectors a thread."""
    total = padded // 8
    wide = total > 2 * PART_THREADS
    if clusters and tokens <= MOST_SHARED and total <= 8 * 4 * PART_THREADS and (wide or group > 0):
        # Small blocks find room beside a product; where there are many of them, half as many threads must do.
        enough = next(n for n in (1, 2, 4, 8) if n == 8 or total <= n * PART_THREADS)
        few = tokens <= 16
        parts = enough if few else next(n for n in (8, 4, 2, 1) if n * tokens <= MOST_PARTS or n == 1)
        parts = min(parts, enough)
        if few or (parts > 1 and wide):
            vectors = next(n for n in (1, 2, 4) if total <= parts * n * (1 if few else 2) * PART_THREADS)
            return vectors, -(-total // (parts * vectors) // 64) * 64, parts, parts
    every = _vectors(tokens, heavy, heavy and clusters and not wide)
    for vectors in every:
        threads = -(-total // vectors // 64) * 64
        if threads <= (MOST_THREADS if tokens <= MOST_SHARED or vectors == every[-1] else 256):
            return vectors, max(threads, 64), 1, 1
    return every[-1], MOST_THREADS, -(-total // (every[-1] * MOST_THREADS)), 1


def _vectors(tokens: int, heavy: bool, short: bool) -> tuple[int, ...]:
    """In which order to try them. short: of up to 512 vectors a token, on Hopper, where blocks of 256 threads
    find room beside skinny.cu's; beside hopper.cu's there is none in any case."""
    if short and MOST_SHARED < tokens < LEAST_MANY_SHORT:
        return (1,)
    if tokens <= (16 if short else MOST_SHARED):
        return (1, 2) if heavy else (1, 2, 4)
    return (2,) if heavy else (2, 4)


def launch_shapes(padded: int, clusters: bool, group: int) -> set[tuple[int, int]]:
    """Vectors and blocks a token of every number of tokens, codes in rows."""
    every = (launch_shape(tokens, padded, clusters, group, False) for tokens in range(1, MOST_SHARED + 2))
    return {(vectors, parts) for vectors, _, _, parts in every}


@cache
def quantizer(
    index: int, dtype: torch.dtype, vectors: int, rotate: bool, tail: bool, group: int, fused: int = 0,
    tiled: int = 0, parts: int = 1,
) -> Kernel:  # fmt: skip
    macros = quantizer_macros(dtype, vectors, rotate, tail, group, fused, tiled, parts)
    return kernel("quantize.cu", "quantize", tuple(macros.items()), index)


def quantizer_macros(
    dtype: torch.dtype, vectors: int, rotate: bool, tail: bool, group: int, fused: int, tiled: int = 0,
    parts: int = 1,
) -> dict[str, int]:  # fmt: skip
    return {
        "INPUT": TYPES[dtype], "VECTORS": vectors, "ROTATE": int(rotate), "TAIL": int(tail), "GROUP": group,
        "FUSED": fused, "TILED": tiled, "PARTS": parts,
    }  # fmt: skip


def gemm_into(
    y: Tensor, codes: Tensor, x_scales: Tensor, sums: Tensor, flags: Tensor, weight: list[Tensor],
    bias: Tensor | None, scales: Scales, group: int, tile: Tile,
) -> None:  # fmt: skip
    """The product kernel with a given tile. weight: codes8, codes4, scales8, scales4, rows, row_scales."""
    codes8, codes4 = weight[:2]
    target = device(y.device.index)
    run = product(target.index, scales, tile)
    blocks = target.multiprocessors * tile.blocks
    tokens, groups = len(codes), codes.shape[1] // GROUP_SIZE
    per_tile = tile.bm // 16
    tiles = (-(-len(codes8) // per_tile) + -(-len(codes4) // per_tile)) * -(-tokens // tile.bn)
    # Whole waves go round the blocks; what is left over, and all where there is less than two waves, is cut.
    cut = tiles if tiles < 2 * blocks else tiles % blocks
    # An 8-bit slot is half the inputs of a 4-bit one: as many bytes to read, half the products to compute.
    cost4 = 2 if tile.bn >= 64 else 1
    if 2 * blocks * groups * 2 * blocks >= 2**31:
        raise MixllmError(f"mixed linear: {codes.shape[1]} inputs are more than the schedule's 32 bits hold")
    if blocks * (tile.wm if tile.stream else 1) > flags.numel():
        raise MixllmError(f"mixed linear: {blocks} blocks need more than {flags.numel()} flags")
    partials = torch.empty(blocks * tile.bm * tile.bn if cut else 0, dtype=torch.int32, device=y.device)
    shape = Shape(tokens, len(codes8), len(codes4), groups, cut, 1, cost4, BAND)
    run.launch(
        blocks,
        tile.threads,
        gemm_arguments(y, codes, x_scales, sums, partials, flags, weight, bias, group, shape),
    )


def gemm_arguments(
    y: Tensor, codes: Tensor | None, x_scales: Tensor | None, sums: Tensor | None, partials: Tensor | None,
    flags: Tensor | None, weight: list[Tensor], bias: Tensor | None, group: int, shape: Shape,
) -> Gemm:  # fmt: skip
    """What csrc/epilogue.cuh calls Arguments; partials and flags only where something is cut along K, and
    no codes, scales and sums where the kernel makes them."""
    codes8, codes4, scales8, scales4, rows, row_scales, *blocks = weight

    def address(tensor: Tensor | None) -> int | None:
        return None if tensor is None else tensor.data_ptr()

    return Gemm(
        codes8.data_ptr(), codes4.data_ptr(), scales8.data_ptr(), scales4.data_ptr(),
        address(codes), address(x_scales), address(partials), address(flags),
        Outputs(rows.data_ptr(), row_scales.data_ptr(), address(sums), address(bias), y.data_ptr(),
                y.shape[1], TYPES[y.dtype]),
        shape, -(-shape.tokens // 4) * 4 if x_scales is None else x_scales.shape[1],
        (max(group, GROUP_SIZE) // GROUP_SIZE).bit_length() - 1,
        address(blocks[0] if blocks else None),
    )  # fmt: skip


@cache
def product(index: int, scales: Scales, tile: Tile) -> Kernel:
    macros = {**tile.macros(), **scales.macros()}
    return kernel(tile.source, "mixed_gemm", tuple(macros.items()), index, shared_bytes(tile, scales))


@operator("mixllm::quantize")
def quantize(
    x: Tensor, rotate: bool, group: int, tiled: bool = False, summed: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x [T, K] -> codes int8 [T, 128 G], scales float32 [A, T'] (T' = T rounded up to 4), sums of a token's
    codes int32 [T], and cleared flags for the product. group 0: one scale a token. tiled: codes are
    [G, T, 128] in the order that mixllm.kernels.cuda.hopper wants; summed: and unsigned, 128 too much, and
    behind them are ceil(G / 16) more lines with the sums of groups (csrc/activations.cuh)."""
    if x.stride(1) != 1 and x.shape[1] > 1:
        x = x.contiguous()
    out = outputs(x, group, tiled, summed)
    if len(x):
        with torch.cuda.device(x.device):
            quantize_into(x, rotate, group, *out)
    return out


@fake("mixllm::quantize")
def _quantized_like(
    x: Tensor, rotate: bool, group: int, tiled: bool = False, summed: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return outputs(x, group, tiled, summed)


def padded_inputs(inputs: int) -> int:
    """As many as are multiplied: whole groups of weights."""
    return -(-inputs // GROUP_SIZE) * GROUP_SIZE


def outputs(
    x: Tensor, group: int, tiled: bool = False, summed: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What `quantize` returns for x [T, K], not filled."""
    tokens, inputs = x.shape
    padded = padded_inputs(inputs)
    lines = padded // GROUP_SIZE
    if summed:
        lines += -(-lines // SUMS_A_LINE)
    activation_groups = 1 if group == 0 else (inputs + group - 1) // group
    return (
        x.new_empty((lines, tokens, 128) if tiled else (tokens, padded), dtype=torch.int8),
        x.new_empty((activation_groups, (tokens + 3) // 4 * 4), dtype=torch.float32),
        x.new_empty((tokens,), dtype=torch.int32),
        x.new_empty((FLAGS,), dtype=torch.int32),
    )


@operator("mixllm::gemm", ("flags",))
def gemm(
    codes: Tensor, x_scales: Tensor, sums: Tensor, flags: Tensor, weight: list[Tensor], bias: Tensor | None,
    channels: int, dtype: torch.dtype, weight_scales: int, group: int,
) -> Tensor:  # fmt: skip
    """Quantized activations times a mixed weight -> y [T, channels]; flags are 0 before and after."""
    y = codes.new_empty((len(codes), channels), dtype=dtype)
    if y.numel():
        scales = Scales(weight_scales, group == 0)
        tile = choose(scales, len(codes), device(y.device.index).shared_limit)
        with torch.cuda.device(y.device):
            gemm_into(y, codes, x_scales, sums, flags, weight, bias, scales, group, tile)
    return y


@fake("mixllm::gemm")
def _gemm_like(
    codes: Tensor, x_scales: Tensor, sums: Tensor, flags: Tensor, weight: list[Tensor], bias: Tensor | None,
    channels: int, dtype: torch.dtype, weight_scales: int, group: int,
) -> Tensor:  # fmt: skip
    return codes.new_empty((codes.shape[0], channels), dtype=dtype)


def check_input(x: Tensor, inputs: int, bias: Tensor | None, channels: int, where: torch.device) -> None:
    """Raises MixllmError for what the kernels don't take, before anything is launched."""
    if x.device != where:
        raise MixllmError(f"mixed linear: input is on {x.device}, weight on {where}; move one")
    if x.dtype not in TYPES:
        raise MixllmError(f"mixed linear: input is {x.dtype}; give float16, bfloat16 or float32")
    if x.shape[-1] != inputs:
        raise MixllmError(f"mixed linear: input has {x.shape[-1]} features, weight {inputs}")
    if bias is not None and (bias.shape != (channels,) or bias.device != where):
        raise MixllmError(f"mixed linear: bias must be [{channels}] on {where}")
