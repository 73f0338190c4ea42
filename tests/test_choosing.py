"""What is prepared beside the salience."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from mixllm.choosing import score
from mixllm.config import QuantConfig
from mixllm.job import open_job
from tests.models import write_tiny


@pytest.mark.parametrize(
    ("fields", "expected"), [({}, 1), ({"rounding": "rtn", "error": "rtn", "clip": False}, 0)]
)
def test_kernels_are_compiled_where_rounding_runs_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any], expected: int
) -> None:
    """Rounding to nearest feeds no block by quantized ones: it needs no compiler, and no new GPU."""
    begun: list[tuple[Any, ...]] = []

    def keep(*arguments: Any) -> Any:
        begun.append(arguments)
        return nullcontext()

    monkeypatch.setattr("mixllm.choosing.compiled_meanwhile", keep)
    write_tiny(tmp_path / "model", "llama")
    (tmp_path / "text.txt").write_text("the thin man in the inn " * 90)
    text = str(tmp_path / "text.txt")
    config = QuantConfig(bits=5.0, calibration=text, samples=3, window=19, **fields)
    job = open_job(str(tmp_path / "model"), config, device="cpu")
    score(job, config)
    assert len(begun) == expected
    for shapes, format, tokens, dtype, device in begun:
        assert list(shapes) == list(job.shapes.values()) and format == config.format
        assert tokens == 19 * job.batch and (dtype, device) == (torch.float32, torch.device("cpu"))
