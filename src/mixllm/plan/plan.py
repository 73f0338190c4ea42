"""A plan: the width of every output channel, in memory and as a JSON file to read, compare and reuse.

    {
      "version": 1,
      "rule": "bits",
      "budget": 4.4,
      ...
      "totals": {"rows": 161280, "rows8": 14873, "payload_bits": 4.4},
      "modules": {
        "model.layers.0.self_attn.q_proj": {"in_features": 576, "out_features": 576, "rows": {"8": "0-3,7"}},
        ...

Rows that are not named have the narrowest width. A module is a line, so that diff shows what changed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from mixllm.config import KERNEL_WIDTHS, WIDTHS, Format, Rounding, Scope, Score, parse
from mixllm.errors import MixllmError
from mixllm.files import read_json, write_atomically
from mixllm.format.config import QuantizedModule
from mixllm.plan.ranges import read_ranges, write_ranges
from mixllm.records import PLAN

Rule = Literal["bits", "channels"]


@dataclass(frozen=True)
class ModulePlan:
    """One linear layer; widths: uint8 [N], bits of each output channel."""

    in_features: int
    widths: Tensor

    @property
    def out_features(self) -> int:
        return self.widths.shape[0]

    def rows(self, width: int) -> Tensor:
        """The numbers of the rows of this width, int64, increasing."""
        return torch.nonzero(self.widths == width)[:, 0]


@dataclass(frozen=True)
class Plan:
    """Widths of all quantized layers, in model order, and how they were chosen.

    widths: those that were to choose from. rule, budget, scope, seed: see choose(); score, error: how the
    salience was measured, None for a uniform plan. format: what the salience was measured for, and
    other_bytes: what the tensors that stay as they are take on disk; both serve the report.
    """

    modules: dict[str, ModulePlan]
    rule: Rule
    budget: float
    scope: Scope = "global"
    seed: int = 0
    score: Score | None = None
    error: Rounding | None = None
    widths: tuple[int, ...] = KERNEL_WIDTHS
    format: Format = field(default_factory=Format)
    other_bytes: int = 0

    @classmethod
    def uniform(
        cls, shapes: Mapping[str, tuple[int, int]], width: int, format: Format, other_bytes: int = 0
    ) -> Plan:
        """Every row of layers of these shapes (out_features, in_features) at one width; needs no salience."""
        modules = {
            name: ModulePlan(k, torch.full((n,), width, dtype=torch.uint8)) for name, (n, k) in shapes.items()
        }
        return cls(modules, rule="bits", budget=float(width), format=format, other_bytes=other_bytes)

    def counts(self) -> dict[str, QuantizedModule]:
        """How many rows of each width every module has; all of KERNEL_WIDTHS, others it has."""
        return {
            name: QuantizedModule(
                in_features=module.in_features,
                out_features=module.out_features,
                rows={
                    width: count
                    for width in WIDTHS
                    if (count := int((module.widths == width).sum())) or width in KERNEL_WIDTHS
                },
            )
            for name, module in self.modules.items()
        }

    @property
    def payload_bits(self) -> float:
        """Mean bits a quantized weight, without scales and zeros."""
        modules = self.modules.values()
        bits = sum(int(m.widths.sum(dtype=torch.int64)) * m.in_features for m in modules)
        return bits / sum(m.out_features * m.in_features for m in modules)

    def save(self, path: str | PathLike[str]) -> None:
        """Write the JSON at once or not at all."""
        text = _text(self)

        def write(file: Path) -> None:
            file.write_text(text, encoding="utf-8")

        write_atomically(Path(path), write)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Plan:
        """Read and check a plan; MixllmError names the file, the field or module and the reason."""
        path = Path(path)
        if path.is_dir():
            raise MixllmError(f"{path}: is a directory; give the plan in it, {path / PLAN}")
        data = read_json(path)
        if "modules" not in data:
            raise MixllmError(f"{path}: no modules in it; it is not a plan that mixllm wrote")
        file = parse(_File, data, str(path))
        if unknown := set(file.widths) - set(WIDTHS):
            raise MixllmError(f"{path}: widths: {min(unknown)} is none of the format's, {_listed(WIDTHS)}")
        modules = {
            name: _module(entry, file.widths, f"{path}: {name}") for name, entry in file.modules.items()
        }
        return cls(modules=modules, **{name: getattr(file, name) for name in _FIELDS})


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    in_features: int = Field(ge=1)
    out_features: int = Field(ge=1)
    rows: dict[int, str]


class _File(BaseModel):
    """The JSON. totals are for the reader: they follow from the rows, and rows may be edited by hand."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1]
    rule: Rule
    budget: float
    scope: Scope
    seed: int
    score: Score | None
    error: Rounding | None
    widths: tuple[int, ...] = Field(min_length=1)
    format: Format
    other_bytes: int = Field(ge=0)
    totals: dict[str, float] = {}
    modules: dict[str, _Entry] = Field(min_length=1)


_FIELDS = tuple(name for name in _File.model_fields if name not in ("version", "totals", "modules"))


def _module(entry: _Entry, widths: tuple[int, ...], where: str) -> ModulePlan:
    found = torch.full((entry.out_features,), min(widths), dtype=torch.uint8)
    named = torch.zeros(entry.out_features, dtype=torch.bool)
    for width, text in entry.rows.items():
        if width not in widths:
            raise MixllmError(f"{where}: rows: {width} is none of the plan's widths, {_listed(widths)}")
        try:
            mask = read_ranges(text, entry.out_features)
        except ValueError as error:
            raise MixllmError(f"{where}: rows: {width}: {error}") from None
        if (twice := torch.nonzero(named & mask)).numel():
            raise MixllmError(f"{where}: rows: row {int(twice[0])} is given two widths; keep one")
        named |= mask
        found[mask] = width
    return ModulePlan(entry.in_features, found)


def _text(plan: Plan) -> str:
    head: dict[str, Any] = {"version": 1}
    head |= {name: getattr(plan, name) for name in _FIELDS} | {"format": plan.format.model_dump()}
    counts = [module.rows for module in plan.counts().values()]
    totals: dict[str, Any] = {"rows": sum(sum(rows.values()) for rows in counts)}
    totals |= {f"rows{width}": sum(rows.get(width, 0) for rows in counts) for width in plan.widths[1:]}
    head["totals"] = totals | {"payload_bits": round(plan.payload_bits, 6)}
    lines = [f"  {json.dumps(name)}: {json.dumps(value)},\n" for name, value in head.items()]
    modules = [f"    {json.dumps(name)}: {json.dumps(_entry(m, plan))}" for name, m in plan.modules.items()]
    return "{\n" + "".join(lines) + '  "modules": {\n' + ",\n".join(modules) + "\n  }\n}\n"


def _entry(module: ModulePlan, plan: Plan) -> dict[str, Any]:
    rows = {str(width): write_ranges(module.rows(width)) for width in plan.widths[1:]}
    return {"in_features": module.in_features, "out_features": module.out_features, "rows": rows}


def _listed(widths: tuple[int, ...]) -> str:
    *others, last = map(str, widths)
    return f"{', '.join(others)} and {last}" if others else last
