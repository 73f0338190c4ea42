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

Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="A local directory, a Hugging Face hub name or a GGUF file.")
]
Checkpoint = Annotated[Path, typer.Argument(metavar="OUT", help="A directory that mixllm quantize wrote.")]
Device = Annotated[
    str, typer.Option(help="Where to compute: auto (a GPU if there is one), cpu, cuda, cuda:1.")
]
Dtype = Annotated[
    Literal["auto", "float32", "bfloat16", "float16"], typer.Option(help="Arithmetic of the float model.")
]
LayersDtype = Annotated[
    Literal["auto", "float32", "bfloat16", "float16"], typer.Option(help="Of what is not quantized.")
]
ONLY_SO_MANY = "Only so many windows, spread over the text"
FLOAT_MODEL = typer.Option("--model", help="The float model: a directory, a hub name or a GGUF file.")
TEXT = 'Text, JSONL or Parquet file, .gz too, hub data set, or "builtin"'
MEASURED_TEXT = typer.Option("--text", help=f"{TEXT}.")
FloatModel = Annotated[str | None, FLOAT_MODEL]
MeasuredText = Annotated[str | None, MEASURED_TEXT]
Window = Annotated[int, typer.Option(min=2, help="Tokens a window.")]
Samples = Annotated[int | None, typer.Option(min=1, help=f"{ONLY_SO_MANY}.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Show no progress.")]
Seed = Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Of every random choice.")]

PROFILE = "fast"
_HELP = {
    "widths": "Bits that an output channel may get, of 3,4,5,6,8; 3 runs as 4, 5 and 6 run as 8.",
    "bits": "Budget: payload bits a quantized weight, from the narrowest width to the widest.",
    "channels": "Budget instead of bits: percent of output channels in the widest width, the paper's rule.",
    "scope": "Where output channels compete: over the whole model, within each layer, or drawn at random.",
    "score": "Salience: token-level Fisher, or the paper's second-order score.",
    "error": "The rounding whose error the salience counts.",
    "rounding": "How weights are rounded: GPTQ, or to the nearest.",
    "clip": "Search for the range of each group that has the least output error.",
    "clip_by": "The error it counts: weighted by the Hessian diagonal, or GPTQ's own, which takes longer.",
    "order": "GPTQ takes groups of inputs in order of their Hessian diagonal.",
    "sweeps": "Rounds of coordinate descent after GPTQ, on codes and scales.",
    "damping": "Share of the mean Hessian diagonal added to it.",
    "tune": "Passes over windows of text that tune row scales after GPTQ; 0 for none.",
    "tune_codes": "Tuning changes codes too, not scales alone; 12 bytes a weight more in memory.",
    "tune_text": "Text that tuning sees, as for --calibration, whose text it is by default.",
    "tune_samples": "Windows of it that tuning sees; as many as --samples by default.",
    "calibration": f"{TEXT}; builtin is always there.",
    "samples": "Calibration windows.",
    "window": "Tokens a calibration window.",
    "seed": "Of every random choice.",
    "weight_scale": "One scale a group, a scale a row times an integer a group, or one a row.",
    "rotation": "Rotate inputs in blocks of 128 before rounding them.",
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


def config(given: dict[str, Any]) -> QuantConfig:
    """The config that flags ask for: the profile's format, then what was given; MixllmError if none fits."""
    values = dict(given)
    format = PROFILES[values.pop("profile", PROFILE)].model_dump()
    for name in Format.model_fields.keys() & values.keys():
        text = values.pop(name)
        format[name] = int(text) if text.isdigit() else text
    return parse(QuantConfig, {**values, "format": format}, "options")


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
        option = typer.Option(help=f"Settings of the format, which flags override. [default: {PROFILE}]")
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
