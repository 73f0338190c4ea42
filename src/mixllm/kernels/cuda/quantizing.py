"""The kernels that make int8 activations: which one, with how many threads, into memory that is there.

csrc/quantize.cu takes any tokens; csrc/quantize_many.cu many, of whole vectors, for the Hopper product.
"""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_int, c_longlong, c_void_p
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from mixllm.config import GROUP_SIZE
from mixllm.kernels.cuda.arguments import TYPES
from mixllm.kernels.cuda.launch import Kernel, device, kernel

# One flag for each block of a product's grid, or each warp of a decoding one; no GPU has so many resident.
FLAGS = 4096
MOST_THREADS = 896
PART_THREADS = 256
# Tokens that clusters of blocks share, and how many blocks they may be where there are more than 16 tokens.
MOST_SHARED = 64
MOST_PARTS = 264
# From so many tokens on csrc/quantize_many.cu takes them, and short ones of up to 16 PART_THREADS inputs.
LEAST_MANY, LEAST_MANY_SHORT = 65, 257
MANY_THREADS = 1024
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


@dataclass(frozen=True)
class Fused:
    """What the quantizer does first; kind 1: RMSNorm with the weight `other`, 2: SiLU(x) times `other`."""

    kind: int
    other: Tensor
    epsilon: float = 0.0


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
    return dtype != torch.float32 and tokens >= least and padded <= 32 * MANY_THREADS


def many_shape(tokens: int, padded: int, multiprocessors: int) -> tuple[int, int]:
    """Threads a block, and as many blocks as SMs have threads for, or fewer with equally many tokens."""
    threads = -(-padded // 1024) * 32
    each = -(-tokens // (multiprocessors * (MANY_THREADS // threads)))
    return threads, -(-tokens // each)


@cache
def quantizer_of_many(
    index: int, dtype: torch.dtype, rotate: bool, tail: bool, group: int, summed: bool
) -> Kernel:
    macros = many_macros(dtype, rotate, tail, group, summed)
    # Faster than blocks that wait beside the product before: these may all be on the few SMs free first.
    return kernel("quantize_many.cu", "quantize", tuple(macros.items()), index, early=False)


def many_macros(dtype: torch.dtype, rotate: bool, tail: bool, group: int, summed: bool) -> dict[str, int]:
    kind = {"INPUT": TYPES[dtype], "ROTATE": int(rotate), "TAIL": int(tail), "GROUP": group}
    return {**kind, "SUMMED": int(summed), "THREADS": MANY_THREADS}


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
