"""mixllm eval"""

from __future__ import annotations

from typing import Annotated

import typer

from mixllm.cli.console import print_json, progress, quiet_libraries, stdout
from mixllm.cli.options import Checkpoint, Device, Dtype, Json, Quiet


def evaluate(
    checkpoint: Checkpoint,
    reference: Annotated[str, typer.Option(help="The float model: a directory, a hub name or a GGUF file.")],
    text: Annotated[str, typer.Option(help='Text, JSONL or Parquet file, hub data set, or "builtin".')],
    window: Annotated[int, typer.Option(min=2, help="Tokens a window.")] = 2048,
    samples: Annotated[int | None, typer.Option(min=1, help="Only the first windows.")] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure OUT against its float model: perplexity, KL divergence and top-1 agreement."""
    quiet_libraries(bars=not quiet)
    from transformers import AutoTokenizer

    from mixllm.cli.show_measured import show_measurements
    from mixllm.data import load_text, windows
    from mixllm.evaluate import measure
    from mixllm.loading import load
    from mixllm.placement import load_float, pick_device, pick_dtype
    from mixllm.source import open_source

    where = pick_device(device)
    source = open_source(reference)
    kind = pick_dtype(dtype, where, source.config)
    ids = windows(load_text(text), AutoTokenizer.from_pretrained(source.path), window, samples)
    models = {"quantized": load(checkpoint, where, kind)}
    with progress(quiet).stage("measure", len(ids)) as bar:
        found = measure(models, load_float(source, where, kind), ids, lambda done, total: bar.advance())
    if json:
        print_json({name: measurement.to_json() for name, measurement in found.items()})
    else:
        show_measurements(stdout(), found)
