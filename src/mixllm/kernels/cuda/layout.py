"""A stored layer in the order that the CUDA kernels read.

Rows go in tiles of 16, 8-bit and 4-bit ones apart; K goes in slots whose codes are 64 bytes a row: 128
inputs of a 4-bit row, 64 of an 8-bit row. A slot of a tile is 1,024 bytes in a row of memory, and slots
follow one another along K, so that a warp's read of one tile is one stream.

    8-bit slot   row 0: 64 inputs | row 1 | ... | row 15

    4-bit slot   inputs 0..63 | inputs 64..127, each 512 bytes = 32 lanes x 16 bytes; lane 4 g + c has
                 inputs 16 c .. 16 c + 15 of rows g and g + 8:

                 byte      0 1 2 3      4 5 6 7      8 9 10 11    12 13 14 15
                 row       g            g + 8        g            g + 8
                 low       0 1 2 3      0 1 2 3      8 9 10 11    8 9 10 11     (+ 16 c)
                 high      4 5 6 7      4 5 6 7      12 13 14 15  12 13 14 15   (+ 16 c)

These are the registers of mma.m16n8k32's first operand once the nibbles are apart (csrc/unpack.cuh).
Scales of a tile and a group of 128 inputs lie together, rows g and g + 8 side by side (csrc/accumulate.cuh).
K is filled up with each row's zero point, whose weight is 0, and rows with channel -1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mixllm.config import GROUP_SIZE, Format
from mixllm.format.bits import grown
from mixllm.format.mixed import MixedWeight
from mixllm.format.pack import pack_nibbles, unpack_nibbles

TILE = 16
# Weights converted at a time: copies beside a layer stay small however large the layer is, launches few.
AT_ONCE = 2**26


@dataclass(frozen=True)
class KernelWeight:
    """Sizes, then tensors on one device; R = ceil(rows / 16) of each width, G = ceil(K / 128).

    codes8 uint8 [R8, 2 G, 1024], codes4 uint8 [R4, G, 1024]
    scales8 uint8 [R8, G, B8], scales4 uint8 [R4, G, B4]: bytes, see csrc/accumulate.cuh
    rows int32 [16 (R8 + R4)]: original channel or -1; row_scales float32 alike (0 where unused)
    """

    in_features: int
    n4: int
    n8: int
    codes8: Tensor
    codes4: Tensor
    scales8: Tensor
    scales4: Tensor
    rows: Tensor
    row_scales: Tensor

    @property
    def out_features(self) -> int:
        return self.n4 + self.n8


def to_kernel_order(weight: MixedWeight, format: Format) -> KernelWeight:
    """Lay a stored layer out for the kernels, on its own device."""
    k, groups = weight.in_features, format.groups(weight.in_features)
    n4, n8 = len(weight.codes4), len(weight.codes8)
    # Group scales of both widths have one type, the wider.
    scale_type = torch.promote_types(weight.scales4.dtype, weight.scales8.dtype)
    by_group = format.weight_scale == "group"

    def four(rows: slice) -> Tensor:
        return _codes4(_whole_groups(weight, format, rows))

    def eight(rows: slice) -> Tensor:
        padded = grown(weight.codes8[rows], (0, groups * GROUP_SIZE - k))
        return _split(_tiles(padded.view(torch.uint8)), 2, (2 * groups, 64)).transpose(1, 2).flatten(2)

    def scales4(rows: slice) -> Tensor:
        zeros = _zeros(weight, format, rows)
        if by_group:
            return torch.cat((by_tile(weight.scales4[rows].to(scale_type)), by_tile(zeros)), dim=2)
        if weight.multipliers4 is not None:
            zeros = zeros << 4 | unpack_nibbles(weight.multipliers4[rows], groups)
        else:
            zeros = zeros << 4
        return by_tile(zeros)

    def scales8(rows: slice) -> Tensor:
        if by_group:
            return by_tile(weight.scales8[rows].to(scale_type))
        return weight.codes8.new_empty((-(-len(weight.codes8[rows]) // TILE), groups, 0), dtype=torch.uint8)

    if by_group:
        row_scales = torch.zeros(0, device=weight.rows.device)
    else:
        row_scales = torch.cat((_pad(weight.scales8, 0), _pad(weight.scales4, 0)))
    return KernelWeight(
        k, n4, n8,
        codes8=_convert(n8, k, eight), codes4=_convert(n4, k, four),
        scales8=_convert(n8, k, scales8), scales4=_convert(n4, k, scales4),
        rows=torch.cat((_pad(weight.rows[n4:], -1), _pad(weight.rows[:n4], -1))),
        row_scales=row_scales.float(),
    )  # fmt: skip


def tiles_at_once(k: int) -> int:
    """Of rows of k weights."""
    return max(1, AT_ONCE // (TILE * k))


def _convert(n: int, k: int, convert: Callable[[slice], Tensor]) -> Tensor:
    """convert's tiles for rows 0 .. n - 1 of k weights, made some at a time."""
    out: Tensor | None = None
    step = tiles_at_once(k) * TILE
    for start in range(0, max(n, 1), step):
        part = convert(slice(start, min(start + step, n)))
        if out is None:
            out = part.new_empty((-(-n // TILE), *part.shape[1:]))
        out[start // TILE : start // TILE + len(part)] = part
    assert out is not None
    return out


def _zeros(weight: MixedWeight, format: Format, rows: slice) -> Tensor:
    groups = format.groups(weight.in_features)
    stored = 1 if format.weight_scale == "row" else groups
    return unpack_nibbles(weight.zeros4[rows], stored).expand(-1, groups)


def _whole_groups(weight: MixedWeight, format: Format, rows: slice) -> Tensor:
    """4-bit codes of rows, packed as they are stored, uint8 [n, 64 G]: missing inputs have zero points."""
    k, packed = weight.in_features, weight.codes4[rows]
    rest = k % GROUP_SIZE
    if not rest:
        return packed
    whole = k // GROUP_SIZE * (GROUP_SIZE // 2)
    zeros = _zeros(weight, format, rows)[:, -1:].expand(-1, GROUP_SIZE - rest)
    last = torch.cat((unpack_nibbles(packed[:, whole:], rest), zeros), dim=1)
    return torch.cat((packed[:, :whole], pack_nibbles(last)), dim=1)


def _pad(values: Tensor, fill: float) -> Tensor:
    return grown(values, (0, -len(values) % TILE), fill)


def _split(values: Tensor, dim: int, sizes: tuple[int, ...]) -> Tensor:
    return values.reshape(*values.shape[:dim], *sizes, *values.shape[dim + 1 :])


def _tiles(values: Tensor) -> Tensor:
    """[n, m] -> [R, 16, m], rows filled up with zeros."""
    padded = grown(values, (0, 0, 0, -len(values) % TILE))
    return _split(padded, 0, (len(padded) // TILE, TILE))


def by_tile(values: Tensor) -> Tensor:
    """[n, G] -> bytes [R, G, 16 * size]: for each group rows 0, 8, 1, 9, ..., 7, 15."""
    ordered = _split(_tiles(values), 1, (2, 8)).permute(0, 3, 2, 1).flatten(2).contiguous()
    return ordered.view(torch.uint8)


def by_row(stored: Tensor, dtype: torch.dtype) -> Tensor:
    """And back: [R, G, 16 * size] -> [16 R, G]."""
    ordered = _split(stored.contiguous().view(dtype), 2, (8, 2))
    return ordered.permute(0, 3, 2, 1).reshape(len(stored) * TILE, stored.shape[1])


def _codes4(packed: Tensor) -> Tensor:
    """uint8 [n, 64 G], two codes a byte -> [R, G, 1024]; axes of the picture: half of the tile h, row g, lane
    part c, product j.

    A word of eight codes 0 1 2 3 4 5 6 7, the first in the lowest bits, becomes 0 4 1 5 2 6 3 7: for each
    byte i code i and i + 4."""
    words = _tiles(packed).contiguous().view(torch.int32)
    words = _exchanged(_exchanged(words, 8, 0x0000FF00), 4, 0x00F000F0)
    split = words.reshape(len(words), 2, 8, words.shape[2] // 8, 4, 2)  # R h g panel c j
    groups = words.shape[2] * 8 // GROUP_SIZE
    return split.permute(0, 3, 2, 4, 5, 1).reshape(len(words), groups, 256).view(torch.uint8)


def _exchanged(words: Tensor, shift: int, mask: int) -> Tensor:
    """The words with the bits under the mask and those `shift` above them exchanged."""
    differ = (words ^ words >> shift).bitwise_and_(mask)
    return words ^ differ ^ differ.bitwise_left_shift(shift)


def in_rows8(stored: Tensor) -> Tensor:
    """[R, 2 G, 1024] -> int8 [16 R, 128 G]."""
    rows = _split(stored, 2, (TILE, 64)).transpose(1, 2)
    return rows.reshape(len(stored) * TILE, stored.shape[1] * 64).view(torch.int8)


def in_rows4(stored: Tensor) -> Tensor:
    """[R, G, 1024] -> uint8 [16 R, 128 G] of 0..15."""
    packed = stored.reshape(len(stored), stored.shape[1] * 2, 8, 4, 2, 2, 4)
    packed = packed.permute(0, 5, 2, 1, 3, 4, 6)  # R h g panel c j i
    split = torch.stack((packed & 15, packed >> 4), dim=-2)
    return split.reshape(len(stored) * TILE, stored.shape[1] * GROUP_SIZE)
