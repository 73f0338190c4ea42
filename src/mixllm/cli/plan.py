"""mixllm plan"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from mixllm.cli.console import print_json, stdout
from mixllm.cli.options import Json, config, config_flags
from mixllm.errors import MixllmError
from mixllm.files import require_place
from mixllm.records import RECORDS


@config_flags("widths", "bits", "channels", "scope", "seed")
def plan(
    source: Annotated[
        Path,
        typer.Argument(metavar="SOURCE", help="A salience file, or a directory that mixllm quantize wrote."),
    ],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The plan file to write.")] = None,
    diff: Annotated[
        Path | None,
        typer.Option(help="Show what changes from SOURCE's plan to this one: a plan file or a checkpoint."),
    ] = None,
    json: Json = False,
    **given: Any,
) -> None:
    """Plan another budget, or compare two plans.

    From a salience that was measured before, so it takes a second.
    """
    from mixllm.cli.show import print_plan, show_changes
    from mixllm.plan import Plan, Salience, choose, compare
    from mixllm.records import PLAN, SALIENCE

    if diff is not None:
        if given or out is not None:
            raise MixllmError("--diff: compares two finished plans; give no budget and no --out with it")
        changes = compare(Plan.load(_record(source, PLAN)), Plan.load(_record(diff, PLAN)))
        if json:
            print_json({name: asdict(change) for name, change in changes.items()})
        else:
            show_changes(stdout(), changes)
        return
    if out is not None:
        require_place(out)
    salience = Salience.load(_record(source, SALIENCE))
    options = config({"widths": tuple(salience.widths), **given})
    made = choose(
        salience.among(options.widths),
        bits=options.bits, channels=options.channels, scope=options.scope, seed=options.seed,
    )  # fmt: skip
    if out is not None:
        made.save(out)
    print_plan(made, json)


def _record(path: Path, name: str) -> Path:
    """`path`, or what a checkpoint directory at `path` keeps under `name`."""
    if not path.exists():
        raise MixllmError(f"{path}: no such file or directory")
    if not path.is_dir():
        return path
    if not (path / RECORDS).is_dir():
        raise MixllmError(f"{path}: keeps no records of mixllm; give a directory that mixllm quantize wrote")
    if not (path / name).exists():
        raise MixllmError(f"{path}: keeps no {name}; it was made with a plan or to uniform bits")
    return path / name
