"""mixllm inspect"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from mixllm.cli.console import print_json, stdout
from mixllm.cli.options import Json
from mixllm.errors import MixllmError


def inspect(
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="A checkpoint directory, a plan or a salience file.")
    ],
    json: Json = False,
) -> None:
    """Show what is in a checkpoint, a plan or a salience file."""
    if path.is_dir():
        _checkpoint(path, json)
    elif not path.exists():
        raise MixllmError(f"{path}: no such file or directory")
    elif path.suffix == ".json":
        _plan(path, json)
    else:
        _salience(path, json)


def _checkpoint(path: Path, json: bool) -> None:
    from mixllm.cli.show import show_report
    from mixllm.format.config import read_config
    from mixllm.format.shards import find_shards
    from mixllm.format.validate import validate_headers
    from mixllm.plan import report

    format, modules = read_config(path)
    validate_headers(find_shards(path), format, modules)
    files = sum(file.stat().st_size for file in path.glob("*.safetensors"))
    found = report(modules, format)
    found = replace(found, other_bytes=files - found.checkpoint_bytes, checkpoint_bytes=files)
    if json:
        print_json(found)
    else:
        show_report(stdout(), found, format, predicted=False)


def _plan(path: Path, json: bool) -> None:
    from mixllm.cli.show import print_plan
    from mixllm.plan import Plan

    print_plan(Plan.load(path), json)


def _salience(path: Path, json: bool) -> None:
    from mixllm.cli.show import show_salience
    from mixllm.plan import Salience

    salience = Salience.load(path)
    if json:
        print_json(
            {
                "score": salience.score,
                "error": salience.error,
                "tokens": salience.tokens,
                "widths": salience.widths,
                "format": salience.format.model_dump(),
                "loss": {
                    name: {width: float(loss.sum(dtype=loss.dtype)) for width, loss in module.loss.items()}
                    for name, module in salience.modules.items()
                },
            }
        )
    else:
        show_salience(stdout(), salience)
