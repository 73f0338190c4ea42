"""The rules that the values of a quantized layer's tensors keep."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from mixllm.config import GROUP_SIZE, Format
from mixllm.format.pack import unpack_nibbles

Fault = tuple[str, str]
INT8_MIN, INT8_MAX = -128, 127
# Rows checked at a time, so that a large layer is never unpacked whole.
ROWS = 1024


def check_values(tensors: Mapping[str, Tensor], format: Format, k: int) -> Fault | None:
    """The first fault in the tensors of a layer whose shapes and dtypes are right: (tensor, reason)."""
    return next(_faults(tensors, format, k), None)


def _faults(tensors: Mapping[str, Tensor], format: Format, k: int) -> Iterator[Fault]:
    groups = format.groups(k)
    zeros = 1 if format.weight_scale == "row" else groups
    if fault := _permutation_fault(tensors["rows"], len(tensors["codes4"])):
        yield "rows", fault
    for name in ("scales4", "scales8"):
        if fault := _scale_fault(tensors[name].float(), 16 if format.weight_scale == "group_int" else 1):
            yield name, fault
    for name, count in (("codes4", k), ("zeros4", zeros), ("multipliers4", groups)):
        if name in tensors and count % 2 and bool((tensors[name][:, -1] >> 4).any()):
            yield name, "the unused half of a row's last byte is not 0"
    if len(tensors["codes8"]) and int(tensors["codes8"].amin()) == INT8_MIN:
        yield "codes8", "holds -128; codes are -127 to 127"
    if format.weight_scale == "group_int":
        for start in range(0, len(tensors["codes4"]), ROWS):
            part = {name: tensor[start : start + ROWS] for name, tensor in tensors.items()}
            if (row := _overflowing_row(part, k)) is not None:
                reason = f"row {start + row}: multiplier x (code - zero) is outside -128 to 127"
                yield "multipliers4", reason


def _permutation_fault(rows: Tensor, n4: int) -> str | None:
    n = len(rows)
    if bool(((rows < 0) | (rows >= n)).any()):
        return f"holds a row number outside 0 to {n - 1}"
    if n and int(torch.bincount(rows).max()) > 1:
        return "holds a row number twice, so it is not a permutation"
    if not all(bool((part[1:] > part[:-1]).all()) for part in (rows[:n4], rows[n4:])):
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


def _overflowing_row(tensors: Mapping[str, Tensor], k: int) -> int | None:
    """The first 4-bit row in which multiplier * (code - zero) leaves int8's range."""
    groups = -(-k // GROUP_SIZE)
    high, low = _extremes(tensors["codes4"], k)
    zero = unpack_nibbles(tensors["zeros4"], groups).to(torch.int16)
    multiplier = unpack_nibbles(tensors["multipliers4"], groups).to(torch.int16) + 1
    wrong = (multiplier * (high - zero) > INT8_MAX) | (multiplier * (low - zero) < INT8_MIN)
    rows = wrong.any(dim=1).nonzero()
    return int(rows[0]) if len(rows) else None


def _extremes(packed: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The largest and the smallest code of each group: uint8 [n, ceil(K / 2)] -> int16 [n, G] twice."""
    n, whole = len(packed), k // GROUP_SIZE
    # A byte's order is that of its high code, and after the shift that of its low one: nothing is unpacked.
    high = packed[:, : whole * GROUP_SIZE // 2].reshape(n, whole, GROUP_SIZE // 2)
    low = high << 4
    largest = torch.maximum(high.amax(2), low.amax(2)) >> 4
    smallest = torch.minimum(high.amin(2), low.amin(2)) >> 4
    if rest := k - whole * GROUP_SIZE:
        last = unpack_nibbles(packed[:, whole * GROUP_SIZE // 2 :], rest)
        largest = torch.cat((largest, last.amax(1, keepdim=True)), 1)
        smallest = torch.cat((smallest, last.amin(1, keepdim=True)), 1)
    return largest.to(torch.int16), smallest.to(torch.int16)
