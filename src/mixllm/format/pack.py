"""Packing: a rounded layer <-> the tensors of a checkpoint. Two functions, each the other's exact inverse."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mixllm.config import KERNEL_WIDTHS, WIDTHS, Format
from mixllm.format.bits import pack_bits, packed_bytes, unpack_bits
from mixllm.format.mixed import MixedWeight
from mixllm.format.rounded import LEAST_HALF, Rounded

Shapes = dict[str, tuple[tuple[int, ...], tuple[torch.dtype, ...]]]


def shapes(format: Format, rows: Mapping[int, int], k: int) -> Shapes:
    """Shape and possible dtypes of each tensor of a layer with k inputs and so many rows of each width."""
    groups = format.groups(k)
    by_group = format.weight_scale == "group"
    scales: tuple[torch.dtype, ...] = (torch.float16, torch.float32) if by_group else (torch.float32,)
    per_row = (groups,) if by_group else ()
    zeros = 1 if format.weight_scale == "row" else groups
    named: Shapes = {"rows": ((sum(rows.values()),), (torch.int32,))}
    for width in _stored(rows):
        n = rows.get(width, 0)
        named[f"scales{width}"] = (n, *per_row), scales
        if width == 8:
            named["codes8"] = (n, k), (torch.int8,)
            continue
        named[f"codes{width}"] = (n, packed_bytes(k, width)), (torch.uint8,)
        named[f"zeros{width}"] = (n, packed_bytes(zeros, width)), (torch.uint8,)
        if format.weight_scale == "group_int":
            named[f"multipliers{width}"] = (n, packed_bytes(groups, 4)), (torch.uint8,)
    return named


def _stored(rows: Mapping[int, int]) -> list[int]:
    """The widths whose tensors a layer with these rows has: 4 and 8 always."""
    return [width for width in WIDTHS if width in KERNEL_WIDTHS or rows.get(width)]


def pack(rounded: Rounded, format: Format) -> MixedWeight:
    """Sort the rows by width, pack narrow values, store group scales as float16 where that is exact."""
    counts = torch.stack([rounded.bits == width for width in WIDTHS]).sum(dim=1).tolist()
    order = rounded.bits.argsort(stable=True)
    rows = dict(zip(WIDTHS, order.split(counts), strict=True))
    tensors: dict[str, Any] = {"rows": order.to(torch.int32)}
    for width in _stored(dict(zip(WIDTHS, counts, strict=True))):
        some = rounded.rows(rows[width])
        tensors[f"scales{width}"] = _narrow(some.scales) if some.row_scales is None else some.row_scales
        if width == 8:
            tensors["codes8"] = some.codes
            continue
        zeros = some.zeros[:, :1] if format.weight_scale == "row" else some.zeros
        tensors[f"codes{width}"] = pack_bits(some.codes.to(torch.uint8), width)
        tensors[f"zeros{width}"] = pack_bits(zeros, width)
        if some.multipliers is not None:
            tensors[f"multipliers{width}"] = pack_nibbles(some.multipliers - 1)
    return MixedWeight(rounded.shape[1], **tensors)


def unpack(weight: MixedWeight, format: Format) -> Rounded:
    """The layer that pack was given, in the original row order."""
    n, k, groups = weight.out_features, weight.in_features, format.groups(weight.in_features)
    tensors, device = weight.tensors(), weight.rows.device
    bits = torch.empty(n, dtype=torch.uint8, device=device)
    codes = torch.empty(n, k, dtype=torch.int8, device=device)
    zeros = torch.zeros(n, groups, dtype=torch.uint8, device=device)
    multipliers = torch.ones_like(zeros) if format.weight_scale == "group_int" else None
    by_group = format.weight_scale == "group"
    stored = torch.empty((n, groups) if by_group else (n,), device=device)
    places = weight.rows.long().split(list(weight.counts.values()))
    for width, place in zip(weight.counts, places, strict=True):
        bits[place] = width
        stored[place] = tensors[f"scales{width}"].float()
        if width == 8:
            codes[place] = weight.codes8
            continue
        codes[place] = unpack_bits(tensors[f"codes{width}"], k, width).to(torch.int8)
        found = 1 if format.weight_scale == "row" else groups
        zeros[place] = unpack_bits(tensors[f"zeros{width}"], found, width).expand(-1, groups)
        if multipliers is not None:
            multipliers[place] = unpack_nibbles(tensors[f"multipliers{width}"], groups) + 1
    scales = stored if by_group else stored[:, None].expand(-1, groups)
    return Rounded(
        bits=bits,
        codes=codes,
        zeros=zeros,
        scales=(scales if multipliers is None else scales * multipliers).contiguous(),
        row_scales=None if by_group else stored,
        multipliers=multipliers,
    )


def for_kernels(weight: MixedWeight, format: Format) -> MixedWeight:
    """The layer with rows of 4 and 8 bits alone, with the very same weights."""
    if tuple(weight.counts) == KERNEL_WIDTHS:
        return weight
    return pack(unpack(weight, format).widened(), format)


def pack_nibbles(values: Tensor) -> Tensor:
    """uint8 [n, k] of 0..15 -> uint8 [n, ceil(k / 2)]; a missing last value is 0."""
    return pack_bits(values, 4)


def unpack_nibbles(packed: Tensor, k: int) -> Tensor:
    """uint8 [n, ceil(k / 2)] -> uint8 [n, k] of 0..15."""
    return unpack_bits(packed, k, 4)


def _narrow(scales: Tensor) -> Tensor:
    half = scales.half()
    exact = (half.float() == scales) & (scales >= LEAST_HALF)
    return half if bool(exact.all()) else scales
