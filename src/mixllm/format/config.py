"""The quantization_config of a checkpoint's config.json: what was quantized, and how to read it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from mixllm.config import KERNEL_WIDTHS, Format, parse
from mixllm.errors import MixllmError
from mixllm.files import read_json

QUANT_METHOD = "mixllm"
# 1 is the version of every Format; layers of experts make a checkpoint version 2, rows of other widths than 4
# and 8 bits version 3.
VERSION = 3
EXPERT = re.compile(r"\.experts\.\d+\.")
# 127 * 128 * K must stay below 2^31, or a sum over all inputs of a row would not fit an int32.
MOST_INPUTS = 132_000


@dataclass(frozen=True)
class QuantizedModule:
    """A quantized linear layer: its size and how many output channels each width has; 4 and 8 are always
    named, other widths where there are such channels."""

    in_features: int
    out_features: int
    rows: dict[int, int]


class _Rows(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    three: int | None = Field(None, alias="3", ge=1)
    four: int = Field(alias="4", ge=0)
    five: int | None = Field(None, alias="5", ge=1)
    six: int | None = Field(None, alias="6", ge=1)
    eight: int = Field(alias="8", ge=0)


class _Module(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    in_features: int = Field(ge=1, le=MOST_INPUTS)
    out_features: int = Field(ge=1)
    rows: _Rows


def quantization_config(format: Format, modules: Mapping[str, QuantizedModule]) -> dict[str, Any]:
    """The JSON that read_config reads back."""
    entries = {
        name: {
            "in_features": module.in_features,
            "out_features": module.out_features,
            "rows": {str(width): count for width, count in module.rows.items()},
        }
        for name, module in modules.items()
    }
    version = 2 if any(map(EXPERT.search, modules)) else 1
    if any(set(module.rows) - set(KERNEL_WIDTHS) for module in modules.values()):
        version = VERSION
    return {"quant_method": QUANT_METHOD, **format.model_dump(), "version": version, "modules": entries}


def read_config(path: Path) -> tuple[Format, dict[str, QuantizedModule]]:
    """The format and the quantized modules of the checkpoint directory `path`; MixllmError if it lies."""
    if not path.is_dir():
        raise MixllmError(f"{path}: no such directory; give a directory that mixllm quantize wrote")
    file = path / "config.json"
    if not file.exists():
        raise MixllmError(f"{file}: missing; {path} is not a finished checkpoint")
    data = read_json(file).get("quantization_config")
    if not isinstance(data, dict) or data.get("quant_method") != QUANT_METHOD:
        raise MixllmError(f"{file}: no quantization_config of mixllm; quantize the model first")
    return parse_config(data, str(file))


def parse_config(data: Mapping[str, Any], where: str) -> tuple[Format, dict[str, QuantizedModule]]:
    """Validate a quantization_config; `where` starts each MixllmError."""
    where = f"{where}: quantization_config"
    version = data.get("version")
    if isinstance(version, int) and version > VERSION:
        raise MixllmError(
            f"{where}: version {version} is a newer mixllm's, this one reads up to {VERSION}; upgrade mixllm"
        )
    if missing := [field for field in (*Format.model_fields, "modules") if field not in data]:
        raise MixllmError(f"{where}: {missing[0]} is missing")
    entries = data["modules"]
    if not isinstance(entries, dict) or not entries:
        raise MixllmError(f"{where}: modules names no quantized module")
    fields = {name: value for name, value in data.items() if name not in ("quant_method", "modules")}
    if version in (2, VERSION):
        fields["version"] = 1
    elif expert := next(filter(EXPERT.search, entries), None):
        raise MixllmError(f"{where}: version {version} has no experts, but modules names {expert}")
    format = parse(Format, fields, where)
    modules = {name: _module(entry, f"{where}: modules: {name}") for name, entry in entries.items()}
    for name, module in modules.items():
        if version != VERSION and (other := sorted(set(module.rows) - set(KERNEL_WIDTHS))):
            raise MixllmError(f"{where}: version {version} has no {other[0]}-bit rows, but {name} does")
    return format, modules


def _module(entry: Any, where: str) -> QuantizedModule:
    parsed = parse(_Module, entry, where)
    rows = {int(width): n for width, n in parsed.rows.model_dump(by_alias=True, exclude_none=True).items()}
    if sum(rows.values()) != parsed.out_features:
        counts = " and ".join(f"{count} {width}-bit" for width, count in rows.items())
        raise MixllmError(f"{where}: {counts} rows don't make {parsed.out_features} channels")
    return QuantizedModule(parsed.in_features, parsed.out_features, rows)
