"""What makes a run another one, and what does not."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mixllm.config import PROFILES, QuantConfig
from mixllm.resume.identity import SAMPLE, Identity, differences, identify, model_digest
from tests.models import write_tiny

IDS = torch.arange(60).view(3, 20)
CONFIG = QuantConfig(samples=3, window=20)
PAPER = CONFIG.model_copy(update={"format": PROFILES["paper"]})


@pytest.fixture
def model(tmp_path: Path) -> Path:
    write_tiny(tmp_path / "model", "llama", shard_size="200KB")
    return tmp_path / "model"


def of(model: Path, **changed: Any) -> Identity:
    given: dict[str, Any] = {
        "ids": IDS,
        "config": CONFIG,
        "device": torch.device("cpu"),
        "dtype": torch.float32,
        "shard_size": 100,
        "files": {"plan": None, "salience": None},
    }
    return identify(model, **{**given, **changed})


def test_place_and_time_do_not_matter(model: Path, tmp_path: Path) -> None:
    first = of(model)
    shutil.copytree(model, tmp_path / "copy")
    assert differences(first, of(tmp_path / "copy")) == {}
    assert differences(first, of(model, config=CONFIG.model_copy(update={"calibration": "moved.txt"}))) == {}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"ids": IDS + 1}, "calibration differs"),
        ({"ids": IDS.view(4, 15)}, "calibration differs"),
        ({"tuning": IDS}, "tuning differs"),
        ({"config": CONFIG.model_copy(update={"bits": 4.8})}, "bits was 4.4, not 4.8"),
        ({"config": CONFIG.model_copy(update={"clip": False})}, "clip was True, not False"),
        ({"config": PAPER}, "weight_scale was group_int, not group"),
        ({"device": torch.device("cuda:1")}, "device was cpu, not cuda"),
        ({"dtype": torch.bfloat16}, "dtype was float32, not bfloat16"),
        ({"shard_size": 200}, "shard_size was 100, not 200"),
    ],
)  # fmt: skip
def test_what_differs_is_named(model: Path, changed: dict[str, Any], said: str) -> None:
    assert next(iter(differences(of(model), of(model, **changed)).values())) == said


def test_versions_count(model: Path) -> None:
    first = of(model)
    assert differences({**first, "mixllm": "0.0.9"}, first) == {
        "mixllm": f"mixllm was 0.0.9, not {first['mixllm']}"
    }


def test_a_plan_counts_by_what_it_says(model: Path, tmp_path: Path) -> None:
    plans = [tmp_path / name for name in ("a", "b", "c")]
    for path, text in zip(plans, ("x", "x", "y"), strict=True):
        path.write_text(text)
    a, b, c = (of(model, files={"plan": path, "salience": None}) for path in plans)
    assert a == b
    assert differences(a, c) == {"plan": "plan differs"}


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "model.norm.weight"])
def test_any_tensor_that_was_trained_on_is_seen(model: Path, name: str) -> None:
    before = model_digest(model)
    file = next(f for f in model.glob("*.safetensors") if name in load_file(f))
    tensors = load_file(file)
    tensors[name] = tensors[name] * 1.001
    save_file(tensors, file, metadata={"format": "pt"})
    assert model_digest(model) != before


def test_samples_are_the_middle_and_the_end(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    size = 5 * SAMPLE

    def digest(place: int | None) -> str:
        data = torch.zeros(size, dtype=torch.uint8)
        if place is not None:
            data[place] = 1
        save_file({"w": data}, tmp_path / "model.safetensors")
        return model_digest(tmp_path)

    assert digest(size // 2) != digest(None) != digest(size - 1)
    assert digest(0) == digest(None), "the documented limit: not every byte is read"


def test_the_model_config_counts(model: Path) -> None:
    before = model_digest(model)
    (model / "config.json").write_text((model / "config.json").read_text() + " ")
    assert model_digest(model) != before
