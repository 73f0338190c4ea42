"""Measurements kept with a checkpoint, for its report and its model card."""

from __future__ import annotations

from pathlib import Path

from mixllm.config import parse
from mixllm.files import read_json, write_json
from mixllm.records import MEASURED
from mixllm.report.measured import Measured
from mixllm.report.samples import Sample


def save_measured(out: Path, measured: Measured, samples: list[Sample]) -> None:
    """Keep them in the checkpoint directory `out`, in place of what was there."""
    kept = {**measured.model_dump(), "samples": [sample.model_dump() for sample in samples]}
    write_json(out / MEASURED, kept)


def read_measured(out: Path) -> tuple[Measured | None, list[Sample]]:
    """What save_measured() left in the checkpoint, if it was ever called."""
    path = out / MEASURED
    if not path.is_file():
        return None, []
    data = read_json(path)
    samples = [parse(Sample, sample, str(path)) for sample in data.pop("samples", [])]
    return parse(Measured, data, str(path)), samples
