"""Tuning on a GPU as the command does it: rounded layers come from files, to where the model runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mixllm.config import QuantConfig
from mixllm.pipeline import quantize
from tests.models import write_tiny

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("codes", [False, True])
def test_a_checkpoint_is_tuned(tmp_path: Path, codes: bool) -> None:
    write_tiny(tmp_path / "model", "llama")
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog, and then the other way round. " * 60)
    config = QuantConfig(calibration=str(text), samples=6, window=40, bits=5.0)
    tuned = config.model_copy(update={"tune": 3, "tune_codes": codes})
    found = {}
    for name, how in (("plain", config), ("tuned", tuned)):
        quantize(str(tmp_path / "model"), tmp_path / name / "out", how, device="cuda")
        found[name] = load_file(tmp_path / name / "out/model.safetensors")
    assert found["plain"].keys() == found["tuned"].keys()
    assert any(not torch.equal(found["plain"][name], found["tuned"][name]) for name in found["plain"])
