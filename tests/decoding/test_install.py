"""Which models take the short ways: loaded ones of the right structure, where kernels were built."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from mixllm.decoding import install
from mixllm.decoding.head import ShortHead
from mixllm.decoding.way import ShortWay
from mixllm.kernels import cpu
from mixllm.loading import load
from tests.decoding.models import ids, prefilled, quantized, step
from tests.format.layers import write_quantized
from tests.models import tiny_model


def ways(model: Any) -> list[type]:
    return [type(vars(module)["forward"].__self__) for module in model.modules() if "forward" in vars(module)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_quantized(tmp_path_factory.mktemp("llama"), tie=True)


def test_a_loaded_model_has_them_and_is_saved_without(checkpoint: Path, tmp_path: Path) -> None:
    for model in (load(checkpoint), AutoModelForCausalLM.from_pretrained(checkpoint)):
        assert ways(model) == [ShortWay, ShortHead]
    cache = prefilled(model)
    step(model, ids(1), cache)
    expected = step(model, ids(1, 1), cache)
    model.save_pretrained(tmp_path)
    again = load(tmp_path)
    cache = prefilled(again)
    step(again, ids(1), cache)
    assert torch.equal(step(again, ids(1, 1), cache), expected)


def test_another_backend_runs_the_models_own_code(checkpoint: Path, recwarn: pytest.WarningsRecorder) -> None:
    model = load(checkpoint, backend="reference")
    way = vars(model.model)["forward"].__self__
    cache = prefilled(model)
    for i in range(3):
        step(model, ids(1, i), cache)
    assert way.closed and way.structure is None and not recwarn.list


@pytest.mark.parametrize("architecture", ["olmo2", "gemma3_text", "phi3", "gpt_neox", "mixtral"])
def test_other_structures_are_left_alone(architecture: str) -> None:
    model = tiny_model(architecture)
    install(model)
    assert ways(model) == []


@pytest.mark.parametrize("architecture", ["helium", "ernie4_5"])
def test_models_that_turn_neighbours_run_their_own_code_and_are_not_said_to_be_wrong(
    architecture: str, recwarn: pytest.WarningsRecorder
) -> None:
    model = quantized(architecture)
    install(model)
    cache = prefilled(model)
    step(model, ids(1), cache)
    assert ShortWay not in ways(model) and not recwarn.list


def test_a_model_that_is_not_quantized_is_left_alone() -> None:
    model = tiny_model("llama")
    install(model)
    assert ways(model) == []


def test_without_kernels_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    model = quantized()
    monkeypatch.setattr(cpu, "available", lambda: False)
    install(model)
    assert ways(model) == []


def test_installing_twice_is_once() -> None:
    model = quantized()
    install(model)
    first = vars(model.model)["forward"]
    install(model)
    assert vars(model.model)["forward"] is first
