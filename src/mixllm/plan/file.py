"""A plan as a JSON file, to read, compare, edit by hand and reuse.

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
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field

from mixllm.config import WIDTHS, Format, Rounding, Scope, Score, parse
from mixllm.errors import MixllmError
from mixllm.files import read_json
from mixllm.format.config import MOST_INPUTS
from mixllm.plan.module import ModulePlan
from mixllm.plan.ranges import read_ranges, write_ranges

# Beyond any layer: a slip of the hand that edits a plan must not fill memory.
MOST_ROWS = 2**24
Rule = Literal["bits", "channels"]


class _Entry(BaseModel):
    """A module; rows: width -> ranges of row numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    in_features: int = Field(ge=1, le=MOST_INPUTS)
    out_features: int = Field(ge=1, le=MOST_ROWS)
    rows: dict[int, str]


class PlanFile(BaseModel):
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


# What a file and a plan have alike.
FIELDS = tuple(name for name in PlanFile.model_fields if name not in ("version", "totals", "modules"))


def read_file(path: Path) -> tuple[PlanFile, dict[str, ModulePlan]]:
    """Read and check; MixllmError names the file, the field or module and the reason."""
    data = read_json(path)
    if "modules" not in data:
        raise MixllmError(f"{path}: no modules in it; it is not a plan that mixllm wrote")
    file = parse(PlanFile, data, str(path))
    if unknown := set(file.widths) - set(WIDTHS):
        raise MixllmError(f"{path}: widths: {min(unknown)} is none of the format's, {_listed(WIDTHS)}")
    if list(file.widths) != sorted(set(file.widths)):
        raise MixllmError(f"{path}: widths: they must be in order, the narrowest first, each once")
    modules = {name: _module(entry, file.widths, f"{path}: {name}") for name, entry in file.modules.items()}
    return file, modules


def text_of(fields: Mapping[str, Any], totals: Mapping[str, Any], modules: Mapping[str, ModulePlan]) -> str:
    """The JSON of a plan with these FIELDS; a module is a line."""
    head = {"version": 1, **fields, "totals": totals}
    lines = [f"  {json.dumps(name)}: {json.dumps(value)},\n" for name, value in head.items()]
    entries = {name: _entry(module, fields["widths"]) for name, module in modules.items()}
    parts = [f"    {json.dumps(name)}: {json.dumps(entry)}" for name, entry in entries.items()]
    return "{\n" + "".join(lines) + '  "modules": {\n' + ",\n".join(parts) + "\n  }\n}\n"


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


def _entry(module: ModulePlan, widths: tuple[int, ...]) -> dict[str, Any]:
    rows = {str(width): write_ranges(module.rows(width)) for width in widths[1:]}
    return {"in_features": module.in_features, "out_features": module.out_features, "rows": rows}


def _listed(widths: tuple[int, ...]) -> str:
    *others, last = map(str, widths)
    return f"{', '.join(others)} and {last}" if others else last
