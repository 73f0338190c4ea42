"""The options of the command line, each in one place.

Those of QuantConfig and Format are made from the fields themselves: a field's name in kebab case is the
flag, its type is the flag's type, its default is the default shown.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from mixllm.config import PROFILES, Format, QuantConfig, parse, typed
from mixllm.errors import MixllmError
from mixllm.files import at_home

Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="A local directory, a Hugging Face hub name or a GGUF file.")
]
Checkpoint = Annotated[
    Path, typer.Argument(metavar="CHECKPOINT", help="A directory that mixllm quantize wrote.")
]
Device = Annotated[
    str, typer.Option(help="Where to compute: auto (a GPU if there is one), cpu, cuda, cuda:1.")
]
Dtype = Annotated[
    Literal["auto", "float32", "bfloat16", "float16"],
    typer.Option(help="Data type in which the float model computes."),
]
LayersDtype = Annotated[
    Literal["auto", "float32", "bfloat16", "float16"],
    typer.Option(help="Data type of what is not quantized."),
]
ONLY_SO_MANY = "Take only so many windows, spread over the text"
FLOAT_MODEL = typer.Option("--model", help="The float model: a directory, a hub name or a GGUF file.")
TEXT = 'Text, JSONL or Parquet file, .gz too, hub data set, or "builtin"'
MEASURED_TEXT = typer.Option("--text", help=f"{TEXT}.")
FloatModel = Annotated[str | None, FLOAT_MODEL]
MeasuredText = Annotated[str | None, MEASURED_TEXT]
Window = Annotated[int, typer.Option(min=2, help="Tokens per window.")]
Samples = Annotated[int | None, typer.Option(min=1, help=f"{ONLY_SO_MANY}.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Show no progress.")]
Seed = Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Random seed.")]

PROFILE = "fast"
_HELP = {
    "widths": "Bits that an output channel may get, of 3,4,5,6,8. Kernels run 3 as 4, and 5 and 6 as 8.",
    "bits": "Budget: average bits per quantized weight, scales not counted.",
    "channels": "Budget instead of --bits: percent of channels with the widest width, the paper's rule.",
    "scope": "Choose output channels over the whole model, within each layer, or at random.",
    "score": "Salience score: token-level Fisher, or the paper's second-order score.",
    "error": "Rounding whose error the salience counts: GPTQ, or round to nearest as in the paper.",
    "rounding": "How weights are rounded: GPTQ, or round to nearest.",
    "clip": "Search each group's clipping range for the least output error.",
    "clip_by": "Error that --clip minimizes: weighted by the Hessian diagonal, or GPTQ's own (slower).",
    "order": "Act order: GPTQ takes groups of inputs in order of their Hessian diagonal.",
    "sweeps": "Rounds of coordinate descent after GPTQ, on codes and scales.",
    "damping": "GPTQ damping, as a fraction of the mean Hessian diagonal.",
    "tune": "Passes over text that tune row scales after rounding, taught by the float model; 0 for none.",
    "tune_codes": "Tune codes too, not scales alone (needs --tune); 12 bytes a weight more in memory.",
    "tune_text": "Text to tune on, given as for --calibration. [default: the calibration text]",
    "tune_samples": "Windows to tune on. [default: as many as --samples]",
    "calibration": f"Calibration text. {TEXT} (Python's documentation; your own text is better).",
    "samples": "Number of calibration windows.",
    "window": "Tokens per calibration window.",
    "seed": "Random seed.",
    "weight_scale": "One scale per group, one per row times an integer per group, or one per row.",
    "rotation": "Rotate activations in Hadamard blocks of 128 before they are quantized.",
    "activation_group": "Inputs that share an int8 activation scale.",
}


def config_flags(*only: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the flags of QuantConfig and Format (and --profile), or only those named.

    The command declares **given and gets there what was typed, by field.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        names = only or ("profile", *_fields())
        signature = inspect.signature(command, eval_str=True)
        own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]

        @wraps(command)
        def run(**values: Any) -> None:
            given = {name: values.pop(name) for name in names}
            command(**values, **{name: value for name, value in given.items() if value is not None})

        keyword = [p.replace(kind=p.KEYWORD_ONLY) for p in own]
        added = [_flag(name) for name in names]
        run.__signature__ = signature.replace(parameters=[*keyword, *added])  # type: ignore[attr-defined]  # read by typer
        return run

    return decorate


def with_home(command: Callable[..., None]) -> Callable[..., None]:
    """The command, with ~ in front of its paths as a shell reads it, which leaves it alone after a =."""

    @wraps(command)
    def run(**values: Any) -> None:
        command(**{name: at_home(it) if isinstance(it, Path) else it for name, it in values.items()})

    return run


def config(given: dict[str, Any]) -> QuantConfig:
    """The config that flags ask for: the profile's format, then what was given; MixllmError, which names the
    flag, if none fits."""
    values = dict(given)
    format = PROFILES[values.pop("profile", PROFILE)].model_dump()
    for name in Format.model_fields.keys() & values.keys():
        text = values.pop(name)
        format[name] = int(text) if text.isdigit() else text
    try:
        return parse(QuantConfig, {**values, "format": format}, "options")
    except MixllmError as error:
        _, field, reason = str(error).split(": ", 2)
        raise MixllmError(f"{_flags_of(field)}: {reason}") from None


def _flags_of(field: str) -> str:
    """A field's flag, also of one of its parts ("widths.1"); those of the budget, which is no field."""
    name = field.removeprefix("format.").partition(".")[0]
    return "--bits, --channels" if name == "budget" else f"--{name.replace('_', '-')}"


def _fields() -> dict[str, FieldInfo]:
    """All fields with more than one legal value, QuantConfig's first."""
    fields = {**QuantConfig.model_fields, **Format.model_fields}
    return {name: field for name, field in fields.items() if name != "format" and len(_choices(field)) != 1}


def _choices(field: FieldInfo) -> tuple[str, ...]:
    is_literal = get_origin(field.annotation) is Literal
    return tuple(map(str, get_args(field.annotation))) if is_literal else ()


def _flag(name: str) -> inspect.Parameter:
    if name == "profile":
        kind: Any = Literal[tuple(PROFILES)]
        option = typer.Option(
            help=f"Preset of the format options below, which override it. [default: {PROFILE}]"
        )
    else:
        field = _fields()[name]
        kind = Literal[_choices(field)] if _choices(field) else _plain(field)
        kebab = name.replace("_", "-")
        flag = f"--{kebab}/--no-{kebab}" if kind is bool else f"--{kebab}"
        option = typer.Option(flag, help=_HELP[name] + _default(name, field))
    annotation = Annotated[kind | None, option]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _plain(field: FieldInfo) -> Any:
    if get_origin(field.annotation) is tuple:
        return str  # numbers between commas
    return next(part for part in (*get_args(field.annotation), field.annotation) if part is not NoneType)


def _default(name: str, field: FieldInfo) -> str:
    """What help shows; the budget's default is not a field's default but QuantConfig's choice."""
    default = QuantConfig().bits if name == "bits" else field.default
    if default is None:
        return ""
    text = ("off", "on")[default] if isinstance(default, bool) else typed(default)
    return f" [default: {text}]"
