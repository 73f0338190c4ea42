"""The rules that the values of a quantized layer's tensors keep."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from mixllm.config import GROUP_SIZE, WIDTHS, Format
from mixllm.format.bits import unpack_bits, unused_bits
from mixllm.format.rounded import INT8_MAX, INT8_MIN, least_value

Fault = tuple[str, str]
# Rows checked at a time, so that a large layer is never unpacked whole.
ROWS = 1024


def check_values(tensors: Mapping[str, Tensor], format: Format, k: int) -> Fault | None:
    """The first fault in the tensors of a layer whose shapes and dtypes are right: (tensor, reason)."""
    return next(_faults(tensors, format, k), None)


def _faults(tensors: Mapping[str, Tensor], format: Format, k: int) -> Iterator[Fault]:
    groups = format.groups(k)
    zeros = 1 if format.weight_scale == "row" else groups
    counts = {width: len(tensors[f"codes{width}"]) for width in WIDTHS if f"codes{width}" in tensors}
    narrow = [width for width in counts if width < 8]
    if fault := _permutation_fault(tensors["rows"], list(counts.values())):
        yield "rows", fault
    most = 16 if format.weight_scale == "group_int" else 1
    for width in counts:
        if fault := _scale_fault(tensors[f"scales{width}"].float(), most):
            yield f"scales{width}", fault
    for width in narrow:
        for kind, count, bits in (("codes", k, width), ("zeros", zeros, width), ("multipliers", groups, 4)):
            name = f"{kind}{width}"
            if name in tensors and unused_bits(tensors[name], count, bits):
                yield name, "the unused bits of a row's last byte are not 0"
    if len(tensors["codes8"]) and int(tensors["codes8"].amin()) == INT8_MIN:
        yield "codes8", "holds -128; codes are -127 to 127"
    if format.weight_scale == "group_int":
        for width in narrow:
            least = least_value(width)
            for start in range(0, counts[width], ROWS):
                part = {name: tensor[start : start + ROWS] for name, tensor in tensors.items()}
                if (row := _overflowing_row(part, width, k)) is not None:
                    reason = f"row {start + row}: multiplier x (code - zero) is outside {least} to {INT8_MAX}"
                    yield f"multipliers{width}", reason


def _permutation_fault(rows: Tensor, counts: list[int]) -> str | None:
    n = len(rows)
    if bool(((rows < 0) | (rows >= n)).any()):
        return f"holds a row number outside 0 to {n - 1}"
    if n and int(torch.bincount(rows).max()) > 1:
        return "holds a row number twice, so it is not a permutation"
    if not all(bool((part[1:] > part[:-1]).all()) for part in rows.split(counts)):
        return "the rows of one width are not in ascending order"
    return None


def _scale_fault(scales: Tensor, most: int) -> str | None:
    if bool(scales.isnan().any()):
        return "holds a NaN; scales are finite and above 0"
    if bool((scales * most).isinf().any()):
        return "holds a scale that is not finite; scales are finite and above 0"
    if bool((scales <= 0).any()):
        return "holds a scale that is 0 or negative; scales are finite and above 0"
    return None


def _overflowing_row(tensors: Mapping[str, Tensor], width: int, k: int) -> int | None:
    """The first row of this width in which multiplier * (code - zero) leaves the range it must stay in."""
    groups = -(-k // GROUP_SIZE)
    high, low = _extremes(tensors[f"codes{width}"], width, k)
    zero = unpack_bits(tensors[f"zeros{width}"], groups, width).to(torch.int16)
    multiplier = unpack_bits(tensors[f"multipliers{width}"], groups, 4).to(torch.int16) + 1
    wrong = (multiplier * (high - zero) > INT8_MAX) | (multiplier * (low - zero) < least_value(width))
    rows = wrong.any(dim=1).nonzero()
    return int(rows[0]) if len(rows) else None


def _extremes(packed: Tensor, width: int, k: int) -> tuple[Tensor, Tensor]:
    """The largest and the smallest code of each group of packed rows of this width: int16 [n, G] twice."""
    if width == 4:
        return _nibble_extremes(packed, k)
    groups = unpack_bits(packed, k, width).to(torch.int16).split(GROUP_SIZE, dim=1)
    return (
        torch.stack([group.amax(1) for group in groups], 1),
        torch.stack([group.amin(1) for group in groups], 1),
    )


def _nibble_extremes(packed: Tensor, k: int) -> tuple[Tensor, Tensor]:
    n, whole = len(packed), k // GROUP_SIZE
    # A byte's order is that of its high code, and after the shift that of its low one: nothing is unpacked.
    high = packed[:, : whole * GROUP_SIZE // 2].reshape(n, whole, GROUP_SIZE // 2)
    low = high << 4
    largest = torch.maximum(high.amax(2), low.amax(2)) >> 4
    smallest = torch.minimum(high.amin(2), low.amin(2)) >> 4
    if rest := k - whole * GROUP_SIZE:
        last = unpack_bits(packed[:, whole * GROUP_SIZE // 2 :], rest, 4)
        largest = torch.cat((largest, last.amax(1, keepdim=True)), 1)
        smallest = torch.cat((smallest, last.amin(1, keepdim=True)), 1)
    return largest.to(torch.int16), smallest.to(torch.int16)
