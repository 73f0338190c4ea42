"""What a checkpoint's numbers mean (Format) and how they are made (QuantConfig).

A field name, a command-line flag and a JSON key are one spelling.
"""

from __future__ import annotations

from os import PathLike, fspath
from typing import Any, Literal, Self, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from mixllm.errors import MixllmError

GROUP_SIZE: int = 128
# Bits that a row may be stored in; and those that kernels have, as which others run: 3 as 4, 5 and 6 as 8.
WIDTHS = (3, 4, 5, 6, 8)
KERNEL_WIDTHS = (4, 8)

Scope = Literal["global", "local", "random"]
Score = Literal["fisher", "taylor"]
Rounding = Literal["gptq", "rtn"]
ClipBy = Literal["diagonal", "gptq"]
T = TypeVar("T", bound=BaseModel)
T_VALUE = TypeVar("T_VALUE")


class Format(BaseModel):
    """The meaning of a checkpoint's tensors; written into config.json and met by every backend.

    weight_scale: "group", one float scale for 128 inputs of a row; "group_int", one float scale a
    row times an integer 1..16 a group; "row", one float scale a row.
    rotation: "hadamard", inputs (and the weight's columns, once) are multiplied by an orthonormal
    Hadamard matrix in blocks of rotation_block before rounding.
    activation_group: inputs that share an int8 activation scale; "token", all of them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    group_size: Literal[128] = 128
    weight_scale: Literal["group", "group_int", "row"] = "group_int"
    rotation: Literal["none", "hadamard"] = "hadamard"
    rotation_block: Literal[128] = 128
    activation_group: Literal[128, 256, 512, "token"] = "token"

    def groups(self, in_features: int) -> int:
        """The number of weight groups along K = in_features; the last may be shorter."""
        return -(-in_features // self.group_size)

    def activation_width(self, in_features: int) -> int:
        """How many inputs share one activation scale."""
        return in_features if self.activation_group == "token" else self.activation_group


# Of a checkpoint's files, at most.
SHARD_SIZE = "5GB"
PROFILES: dict[str, Format] = {
    "fast": Format(),
    "paper": Format(weight_scale="group", rotation="none", activation_group=128),
}


class QuantConfig(BaseModel):
    """How a model is quantized. Either bits or channels is the budget. What does not fit together raises
    pydantic's ValidationError, a ValueError.

    widths: bits that a row may get, two or more of WIDTHS, narrowest first.
    bits: payload bits a quantized weight, from the narrowest width to the widest.
    channels: percent of output channels, over the whole model, that get the widest width (the paper's rule),
    the others the narrowest.
    scope: where channels compete: over the whole model, within each layer, or not at all (random).
    score: "fisher", token-level Fisher; "taylor", the paper's S_c.
    error: whose rounding error the salience is computed with.
    rounding, clip, order, sweeps, damping: how the chosen widths are rounded (see mixllm.rounding).
    clip_by: the error that the clip search counts, weighted by the Hessian's diagonal or GPTQ's own.
    tune: how often windows are seen in tuning row scales after GPTQ (see mixllm.tuning): tune_samples windows
    of tune_text, by default as many as `samples` and of the calibration text. tune_codes: codes too.
    calibration: text file, JSONL, Parquet, hub data set or "builtin"; samples windows of `window` tokens.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Format = Format()
    widths: tuple[int, ...] = KERNEL_WIDTHS
    bits: float | None = None
    channels: float | None = Field(default=None, ge=0, le=100)
    scope: Scope = "global"
    score: Score = "fisher"
    error: Rounding = "gptq"
    rounding: Rounding = "gptq"
    clip: bool = True
    clip_by: ClipBy = "diagonal"
    order: bool = True
    sweeps: int = Field(default=0, ge=0)
    damping: float = Field(default=0.01, gt=0, lt=1)
    tune: int = Field(default=0, ge=0)
    tune_codes: bool = False
    tune_text: str | None = None
    tune_samples: int | None = Field(default=None, ge=1)
    calibration: str = "builtin"
    samples: int = Field(default=64, ge=1)
    window: int = Field(default=2048, ge=8)
    seed: int = Field(default=0, ge=0, lt=2**63)

    @field_validator("sweeps", "tune")
    @classmethod
    def _after_gptq(cls, value: int, info: ValidationInfo) -> int:
        if value and info.data.get("rounding") != "gptq":
            raise ValueError("follows GPTQ; leave it out, or give rounding gptq")
        return value

    @field_validator("tune_codes", "tune_text", "tune_samples")
    @classmethod
    def _for_tuning(cls, value: T_VALUE, info: ValidationInfo) -> T_VALUE:
        if value and not info.data.get("tune"):
            raise ValueError("only tuning reads it; leave it out, or give tune")
        return value

    @field_validator("calibration", "tune_text", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        """A file's path as its name."""
        return fspath(value) if isinstance(value, PathLike) else value

    @field_validator("widths", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        """What was typed, "3,4,8", as numbers."""
        return tuple(value.split(",")) if isinstance(value, str) else value

    @field_validator("widths")
    @classmethod
    def _known(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if len(value) < 2 or sorted(set(value)) != list(value) or not set(value) <= set(WIDTHS):
            raise ValueError(f"give two or more of {', '.join(map(str, WIDTHS))}, the narrowest first")
        return value

    @field_validator("bits")
    @classmethod
    def _in_reach(cls, value: float | None, info: ValidationInfo) -> float | None:
        widths = info.data.get("widths", WIDTHS)
        if value is None or widths[0] <= value <= widths[-1]:
            return value
        further = "; give widths that reach further" if WIDTHS[0] <= value <= WIDTHS[-1] else ""
        raise ValueError(f"must be {widths[0]} to {widths[-1]}, not {value:g}{further}")

    @model_validator(mode="before")
    @classmethod
    def _one_budget(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("bits") is None and data.get("channels") is None:
            return {**data, "bits": 4.4}
        return data

    @model_validator(mode="after")
    def _check_budget(self) -> Self:
        if self.bits is not None and self.channels is not None:
            raise ValueError("give bits or channels, not both")
        return self


def parse(model: type[T], data: Any, where: str) -> T:
    """Validate data as a config; a MixllmError of one line names `where`, the field and the reason."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "budget"
        reason, given = first["msg"].removeprefix("Value error, "), first["input"]
        own = first["type"] == "value_error" or not isinstance(given, (bool, int, float, str))
        raise MixllmError(f"{where}: {field}: {reason}{'' if own else f' (it is {given!r})'}") from None


def typed(value: Any) -> str:
    """A field's value as it is typed after its flag: "3,4,8" for several."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
