"""mixllm export"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from mixllm.cli.options import Checkpoint


def export(
    checkpoint: Checkpoint,
    out: Annotated[Path, typer.Option("--out", "-o", help="The directory to write.")],
    to: Annotated[
        Literal["dense"], typer.Option(help="dense: bfloat16 weights in safetensors, which any tool loads.")
    ] = "dense",
) -> None:
    """Write a checkpoint's weights in an ordinary format.

    For any other tool; activations are not quantized in the result.
    """
    from mixllm.export import export_dense

    export_dense(checkpoint, out)
    typer.echo(f"{out}: the weights of {checkpoint}, {to}")
