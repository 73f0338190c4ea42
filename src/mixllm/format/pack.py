"""Packing: a rounded layer <-> the tensors of a checkpoint. Pure functions, each the other's exact inverse.

Two 4-bit values share a byte, the one with the even index in the low half:

    index    0 1 2 3 4               byte      0       1       2
    value    a b c d e       ->      bits    bbbbaaaa ddddcccc 0000eeee
"""

from __future__ import annotations

import torch
from torch import Tensor

from mixllm.config import Format
from mixllm.format.mixed import MixedWeight
from mixllm.format.rounded import LEAST_HALF, Rounded

Shapes = dict[str, tuple[tuple[int, ...], tuple[torch.dtype, ...]]]


def shapes(format: Format, n4: int, n8: int, k: int) -> Shapes:
    """Shape and possible dtypes of each tensor of a layer with n4 + n8 output channels and k inputs."""
    groups = format.groups(k)
    by_group = format.weight_scale == "group"
    scales: tuple[torch.dtype, ...] = (torch.float16, torch.float32) if by_group else (torch.float32,)
    per_row = (groups,) if by_group else ()
    zeros = 1 if format.weight_scale == "row" else groups
    named: Shapes = {
        "rows": ((n4 + n8,), (torch.int32,)),
        "codes4": ((n4, _bytes(k)), (torch.uint8,)),
        "zeros4": ((n4, _bytes(zeros)), (torch.uint8,)),
        "scales4": ((n4, *per_row), scales),
        "codes8": ((n8, k), (torch.int8,)),
        "scales8": ((n8, *per_row), scales),
    }
    if format.weight_scale == "group_int":
        named["multipliers4"] = ((n4, _bytes(groups)), (torch.uint8,))
    return named


def pack(rounded: Rounded, format: Format) -> MixedWeight:
    """Sort the rows by width, pack the 4-bit values, store group scales as float16 where that is exact."""
    four, eight = ((rounded.bits == width).nonzero().flatten() for width in (4, 8))
    zeros, multipliers = rounded.zeros[four], rounded.multipliers
    if rounded.row_scales is None:
        scales4, scales8 = (_narrow(rounded.scales[rows]) for rows in (four, eight))
    else:
        scales4, scales8 = (rounded.row_scales[rows] for rows in (four, eight))
    return MixedWeight(
        in_features=rounded.shape[1],
        rows=torch.cat((four, eight)).to(torch.int32),
        codes4=pack_nibbles(rounded.codes[four].to(torch.uint8)),
        zeros4=pack_nibbles(zeros[:, :1] if format.weight_scale == "row" else zeros),
        scales4=scales4,
        codes8=rounded.codes[eight],
        scales8=scales8,
        multipliers4=None if multipliers is None else pack_nibbles(multipliers[four] - 1),
    )


def unpack(weight: MixedWeight, format: Format) -> Rounded:
    """The layer that pack was given, in the original row order."""
    k, groups, n4 = weight.in_features, format.groups(weight.in_features), len(weight.codes4)
    place = weight.rows.long()

    def join(four: Tensor, eight: Tensor) -> Tensor:
        joined = torch.empty((len(place), *four.shape[1:]), dtype=four.dtype, device=four.device)
        joined[place[:n4]], joined[place[n4:]] = four, eight
        return joined

    def eights(value: int) -> Tensor:
        return torch.full((len(weight.codes8), groups), value, dtype=torch.uint8, device=place.device)

    zeros = unpack_nibbles(weight.zeros4, 1 if format.weight_scale == "row" else groups)
    scales = join(weight.scales4.float(), weight.scales8.float())
    row_scales = multipliers = None
    if format.weight_scale != "group":
        row_scales = scales
        scales = row_scales[:, None].expand(-1, groups)
    if weight.multipliers4 is not None:
        multipliers = join(unpack_nibbles(weight.multipliers4, groups) + 1, eights(1))
        scales = scales * multipliers
    return Rounded(
        bits=join(torch.full_like(place[:n4], 4), torch.full_like(place[n4:], 8)).to(torch.uint8),
        codes=join(unpack_nibbles(weight.codes4, k).to(torch.int8), weight.codes8),
        zeros=join(zeros.expand(-1, groups), eights(0)),
        scales=scales.contiguous(),
        row_scales=row_scales,
        multipliers=multipliers,
    )


def pack_nibbles(values: Tensor) -> Tensor:
    """uint8 [n, k] of 0..15 -> uint8 [n, ceil(k / 2)]; a missing last value is 0."""
    padded = torch.nn.functional.pad(values, (0, values.shape[1] % 2))
    return padded[:, 0::2] | padded[:, 1::2] << 4


def unpack_nibbles(packed: Tensor, k: int) -> Tensor:
    """uint8 [n, ceil(k / 2)] -> uint8 [n, k] of 0..15."""
    return torch.stack((packed & 15, packed >> 4), dim=-1).flatten(1)[:, :k]


def _bytes(nibbles: int) -> int:
    return (nibbles + 1) // 2


def _narrow(scales: Tensor) -> Tensor:
    half = scales.half()
    exact = (half.float() == scales) & (scales >= LEAST_HALF)
    return half if bool(exact.all()) else scales
