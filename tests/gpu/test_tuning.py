"""Tuning on a GPU as the command does it: rounded layers come from files, to where the model runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mixllm.config import PROFILES, QuantConfig
from mixllm.pipeline import quantize
from mixllm.progress import Silent
from mixllm.tuning import tune_scales
from tests.models import write_tiny
from tests.tuning.test_tune import rounded_model, windows

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


@pytest.mark.parametrize("architecture", ["llama", "gemma3_text"])
def test_compiled_blocks_learn_on_a_gpu_what_a_cpu_learns(architecture: str, tmp_path: Path) -> None:
    write_tiny(tmp_path, architecture)
    format, found = PROFILES["fast"], []
    for device in ("cpu", "cuda"):
        decoder, layers = rounded_model(tmp_path, format, device)
        tuned = tune_scales(
            decoder, windows(7), layers, format, epochs=3, codes=True, seed=0, progress=Silent()
        )
        moved = [(tuned[name].scales / layers[name].scales)[:, 0].log().cpu() for name in layers]
        found.append(torch.cat(moved))
    # Products in bfloat16 change the sign of the least gradients, for which Adam goes as far as for others.
    assert float((found[1] - found[0]).norm()) < 0.2 * float(found[0].norm())
