"""What a choice of widths costs on disk, and where its wide rows are."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import TypeVar

from mixllm.config import Format
from mixllm.format.config import QuantizedModule
from mixllm.format.pack import shapes
from mixllm.format.validate import GUARD

# A tensor's entry in the header of a safetensors file.
_HEADER = '"{}":{{"dtype":"F32","shape":{},"data_offsets":[{},{}]}},'
Label = TypeVar("Label", str, int)


@dataclass(frozen=True)
class Share:
    """How many of some output channels have more than 4 bits, and so run as 8-bit rows."""

    rows: int
    wide: int

    @property
    def percent(self) -> float:
        return 100 * self.wide / self.rows


def wide_name(rows: Iterable[int]) -> str:
    """What rows of more than 4 bits are called, where rows have these widths."""
    wide = sorted(width for width in rows if width > 4)
    if not wide:
        return "rows of more than 4 bits"
    return f"{wide[0]}- to {wide[-1]}-bit rows" if len(wide) > 1 else f"{wide[0]}-bit rows"


@dataclass(frozen=True)
class Report:
    """Sizes of a quantized model.

    payload_bits: codes alone, a quantized weight; bits: all that is stored for it, with scales, zeros and
    row numbers. quantized_bytes: the tensors of the quantized layers; other_bytes: the model's other
    tensors, as they are; checkpoint_bytes: the safetensors files together.
    rows: how many rows of each width there are. by_kind: share of wide rows by the last part of a module's
    name; by_depth: by the block's number.
    """

    weights: int
    payload_bits: float
    bits: float
    quantized_bytes: int
    other_bytes: int
    checkpoint_bytes: int
    rows: dict[int, int]
    total: Share
    by_kind: dict[str, Share]
    by_depth: dict[int, Share]


def report(modules: Mapping[str, QuantizedModule], format: Format, other_bytes: int = 0) -> Report:
    """Count what a checkpoint with these rows holds; group scales as float16, which a few layers may exceed.

    other_bytes: of all tensors but the quantized weights (biases are among them).
    """
    weights = sum(module.out_features * module.in_features for module in modules.values())
    payload = sum(
        count * width * module.in_features
        for module in modules.values()
        for width, count in module.rows.items()
    )
    stored = header = 0
    for name, module in modules.items():
        tensors = shapes(format, module.rows, module.in_features)
        for tensor, (shape, dtypes) in tensors.items():
            start, stored = stored, stored + prod(shape) * dtypes[0].itemsize
            header += len(_HEADER.format(f"{name}.{tensor}", list(shape), start, stored))
        header += len(_HEADER.format(f"{name}.{GUARD}", [0], stored, stored))
    return Report(
        weights=weights,
        payload_bits=payload / weights,
        bits=8 * stored / weights,
        quantized_bytes=stored,
        other_bytes=other_bytes,
        checkpoint_bytes=stored + header + other_bytes,
        rows={width: sum(m.rows.get(width, 0) for m in modules.values()) for width in _widths(modules)},
        total=_share(modules.values()),
        by_kind=_shares({name: kind_of(name) for name in modules}, modules),
        by_depth=_shares({name: depth_of(name) for name in modules}, modules),
    )


def kind_of(name: str) -> str:
    """The last part of a module's name: q_proj, down_proj."""
    return name.rpartition(".")[2]


def depth_of(name: str) -> int:
    """The block's number: the first whole number among a module name's parts."""
    return next((int(part) for part in name.split(".") if part.isdecimal()), 0)


def _widths(modules: Mapping[str, QuantizedModule]) -> list[int]:
    return sorted({width for module in modules.values() for width in module.rows})


def _shares(labels: Mapping[str, Label], modules: Mapping[str, QuantizedModule]) -> dict[Label, Share]:
    groups: defaultdict[Label, list[QuantizedModule]] = defaultdict(list)
    for name, label in labels.items():
        groups[label].append(modules[name])
    return {label: _share(members) for label, members in groups.items()}


def _share(modules: Iterable[QuantizedModule]) -> Share:
    counts = [(width, count) for module in modules for width, count in module.rows.items()]
    return Share(
        rows=sum(count for _, count in counts), wide=sum(count for width, count in counts if width > 4)
    )
