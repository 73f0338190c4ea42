"""mixllm eval"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mixllm.cli import options
from mixllm.cli.console import print_json, progress, quiet_libraries, stdout
from mixllm.errors import MixllmError

if TYPE_CHECKING:
    import torch

    from mixllm.integrations.lm_eval import Tasks
    from mixllm.source import Source

QUANTIZED = "quantized"


def evaluate(
    checkpoint: options.Checkpoint,
    model: options.FloatModel = None,
    text: options.MeasuredText = None,
    window: options.Window = 2048,
    samples: Annotated[
        int | None, typer.Option(min=1, help=f"{options.ONLY_SO_MANY}, and so many documents of each task.")
    ] = None,
    tasks: Annotated[
        str | None, typer.Option(help="Tasks of lm-evaluation-harness, with commas between them.")
    ] = None,
    include_path: Annotated[
        Path | None, typer.Option(help="A directory with YAML files of your own lm-eval tasks.")
    ] = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Measure a checkpoint on a text, on lm-eval's tasks, or both.

    On the text, against its float model: perplexity, KL divergence and top-1 agreement. With --model the
    tasks are run on the float model too.
    """
    if text is None and tasks is None:
        raise MixllmError("--text, --tasks: give at least one; there is nothing to measure on")
    if text is not None and model is None:
        raise MixllmError("--text: measuring on it needs the float model; give --model")
    if include_path is not None and tasks is None:
        raise MixllmError("--include-path: has no effect without --tasks")
    quiet_libraries(bars=not quiet)
    chosen = None if tasks is None else _tasks(tasks, include_path, samples)
    from mixllm.cli.show_measured import show_measurements, show_tasks
    from mixllm.evaluate import REFERENCE, measure
    from mixllm.origin import note_origin, require_kind
    from mixllm.placement import pick_device
    from mixllm.source import open_source
    from mixllm.texts import open_tokenizer, text_windows

    where = pick_device(device)
    source = None if model is None else open_source(model)
    tokenizer = open_tokenizer(checkpoint if source is None else source.path)
    ids = None
    if text is not None and source is not None:
        ids = text_windows(text, tokenizer, source.config, window, samples)
    shown = progress(quiet)
    if source is not None:
        require_kind(checkpoint, source)
        note_origin(checkpoint, source, shown)
    models = _load(checkpoint, source, where, dtype)
    measured = {}
    if ids is not None:
        with shown.stage("measure", len(ids)) as bar:
            quantized = {QUANTIZED: models[QUANTIZED]}
            measured = measure(quantized, models[REFERENCE], ids, lambda done, total: bar.advance())
    scores = {} if chosen is None else {name: chosen.run(model, tokenizer) for name, model in models.items()}
    if json:
        figures = {name: measurement.to_json() for name, measurement in measured.items()}
        asked = {name: {"tasks": found} for name, found in scores.items()}
        print_json({name: figures.get(name, {}) | asked.get(name, {}) for name in models})
        return
    if measured:
        show_measurements(stdout(), measured)
    if scores:
        show_tasks(stdout(), scores)


def _load(checkpoint: Path, source: Source | None, device: torch.device, dtype: str) -> dict[str, Any]:
    """The quantized model, after its float model where there is one."""
    from mixllm.evaluate import REFERENCE
    from mixllm.loading import load
    from mixllm.placement import DTYPES, load_float, pick_dtype

    if source is None:
        return {QUANTIZED: load(checkpoint, device, DTYPES.get(dtype))}
    kind = pick_dtype(dtype, device, source.config)
    return {REFERENCE: load_float(source, device, kind), QUANTIZED: load(checkpoint, device, kind)}


def _tasks(names: str, include: Path | None, limit: int | None) -> Tasks:
    try:
        from mixllm.integrations.lm_eval import Tasks
    except ModuleNotFoundError as error:
        raise MixllmError(f"--tasks: needs {error.name}; pip install 'mixllm[lm-eval]'") from None
    return Tasks([name.strip() for name in names.split(",")], include, limit)
