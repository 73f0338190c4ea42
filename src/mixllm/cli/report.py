"""mixllm report and mixllm compare"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mixllm.cli import options
from mixllm.cli.console import print_json, progress, quiet_libraries, stdout
from mixllm.errors import MixllmError
from mixllm.files import require_place

Page = Annotated[Path | None, typer.Option("--out", "-o", help="The HTML file to write.")]


def report(
    checkpoint: options.Checkpoint,
    out: Page = None,
    model: options.FloatModel = None,
    text: options.MeasuredText = None,
    also: Annotated[
        list[str] | None, typer.Option(help="Another checkpoint to measure beside it; may be repeated.")
    ] = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option("--prompt", "-p", help="Generate from this prompt with each model; may be repeated."),
    ] = None,
    window: options.Window = 2048,
    samples: options.Samples = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Write one HTML page about a checkpoint.

    It is CHECKPOINT/mixllm/report.html, or --out; --model and --text have it measured first. With --json its
    figures are printed, and no page is written unless --out is given.
    """
    if (model is None) != (text is None):
        raise MixllmError("--model and --text: measuring needs both; give the other one too")
    if model is None and (also or prompt):
        raise MixllmError("--also and --prompt: need --model and --text, to measure and write with")
    quiet_libraries(bars=not quiet)
    from mixllm.records import MEASURED, REPORT
    from mixllm.report.drawing import require
    from mixllm.report.findings import gather

    path = out or (None if json else checkpoint / REPORT)
    gather(checkpoint)  # what is wrong with OUT, or with the page's place, is said before anything takes time
    if path is not None:
        require()
        require_place(path)
    if model is not None and text is not None:
        require_place(checkpoint / MEASURED)
        from mixllm.card import renew_card
        from mixllm.origin import require_kind
        from mixllm.report.models import Bench, measure_all
        from mixllm.report.samples import PROMPTS, Writer
        from mixllm.report.store import save_measured

        bench = Bench.open(model, text, window, samples, device, dtype)
        require_kind(checkpoint, bench.source)
        writer = Writer(tuple(prompt or PROMPTS))
        measured = measure_all(bench, [str(checkpoint), *(also or ())], progress(quiet), writer)
        save_measured(checkpoint, measured, writer.samples)
        renew_card(checkpoint)
    findings = gather(checkpoint)
    if path is not None:
        from mixllm.report.page import write_report

        write_report(findings, path)
    if json:
        print_json(findings.to_json())
    else:
        print(path)


def compare(
    checkpoints: Annotated[
        list[str],
        typer.Argument(metavar="CHECKPOINT", help="mixllm's checkpoints, or others that transformers loads."),
    ],
    model: Annotated[str, options.FLOAT_MODEL],
    text: Annotated[str, options.MEASURED_TEXT],
    out: Page = None,
    window: options.Window = 2048,
    samples: options.Samples = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Measure checkpoints on the same windows of text.

    One table, the differences from the first checkpoint, and with --out one page.
    """
    quiet_libraries(bars=not quiet)
    from mixllm.cli.show_measured import show_comparison
    from mixllm.report.drawing import require
    from mixllm.report.models import Bench, measure_all

    if out is not None:
        require()
        require_place(out)
    measured = measure_all(
        Bench.open(model, text, window, samples, device, dtype), checkpoints, progress(quiet)
    )
    if out is not None:
        from mixllm.report.page import write_comparison

        write_comparison(measured, out)
    if json:
        print_json(measured.model_dump())
    else:
        show_comparison(stdout(), measured)
