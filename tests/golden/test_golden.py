"""Checkpoints that earlier versions wrote load and give the same numbers."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from tests.golden.make import HERE, IDS, digest, inputs

from mixllm.format.checkpoint import validate
from mixllm.loading import load
from mixllm.nn import MixLinear

NAMES = sorted(path.name for path in HERE.iterdir() if (path / "checkpoint").is_dir())


def test_there_is_one_for_each_kind() -> None:
    assert {"fast", "paper", "row", "experts", "widths", "widths-paper"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_it_gives_the_same_numbers(name: str) -> None:
    validate(HERE / name / "checkpoint")
    model = load(HERE / name / "checkpoint", dtype=torch.float32)
    layers = {n: module for n, module in model.named_modules() if isinstance(module, MixLinear)}
    with safe_open(HERE / name / "expected.safetensors", framework="pt") as expected, torch.no_grad():
        assert {n: digest(layer) for n, layer in layers.items()} == expected.metadata()
        for n, layer in layers.items():
            torch.testing.assert_close(layer(inputs(layer.in_features)), expected.get_tensor(n))
        torch.testing.assert_close(model(IDS).logits, expected.get_tensor("logits"), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_it_is_saved_as_it_was(name: str, tmp_path: Path) -> None:
    load(HERE / name / "checkpoint").save_pretrained(tmp_path)
    file = "model.safetensors"
    assert (tmp_path / file).read_bytes() == (HERE / name / "checkpoint" / file).read_bytes()
    shutil.rmtree(tmp_path)
