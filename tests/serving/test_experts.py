"""Mixtures of experts in vLLM against transformers, on tiny models in float32.

Agreement is as in test_vllm.py, but an activation that crosses a border between two int8 codes moves more:
here it meets two more quantized layers and may change a token's experts. Until the first such crossing
both agree to float32's rounding.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.serving.test_vllm import NARROW, SPLIT, errors, job, make
from tests.serving.vllm_process import engines, results

import mixllm
from mixllm.config import PROFILES

pytestmark = pytest.mark.vllm

SIZES: dict[str, dict[str, Any]] = {
    "mixtral": {"intermediate_size": 200},
    "qwen3_moe": {"head_dim": 32},
    "olmoe": {},
}


MEAN, MOST, FIRST = 1.5e-2, 0.15, 1e-4


def check(answers: list[dict[str, Any]], model: torch.nn.Module) -> None:
    for error in errors(answers, model):
        assert error.mean() < MEAN and error.max() < MOST and error[0] < FIRST, error


def test_mixtures_give_the_log_probabilities_of_transformers(tmp_path: Path) -> None:
    paths = {
        name: make(tmp_path / name, name, PROFILES["fast"], {**NARROW, **sizes})
        for name, sizes in SIZES.items()
    }
    found = results([job(path) for path in paths.values()])
    for path, answers in zip(paths.values(), found, strict=True):
        check(answers, mixllm.load(path))


def test_compiled_graphs_give_the_same(tmp_path: Path) -> None:
    path = make(tmp_path / "olmoe", "olmoe", PROFILES["fast"], NARROW)
    (answers,) = results([job(path, enforce_eager=False)], compile=True)
    check(answers, mixllm.load(path))


def test_two_ranks(tmp_path: Path) -> None:
    # Scales of activations are a group's, so the ranks together compute what one computes.
    path = make(tmp_path / "mixtral", "mixtral", PROFILES["paper"], SPLIT)
    (answers,) = results([job(path, tensor_parallel_size=2)])
    check(answers, mixllm.load(path))


def test_dummy_weights_need_no_tensors(tmp_path: Path) -> None:
    path = make(tmp_path / "qwen3_moe", "qwen3_moe", PROFILES["fast"], {**NARROW, "head_dim": 32})
    (path / "model.safetensors").unlink()
    ((first, _),) = results([job(path, load_format="dummy")])
    assert all(-50 < value < 0 for value in first["logprobs"])


def test_ranks_that_would_cut_a_group_are_refused(tmp_path: Path) -> None:
    sizes = {**SPLIT, "intermediate_size": 384}
    path = make(tmp_path / "mixtral", "mixtral", PROFILES["paper"], sizes)
    done = engines([job(path, tensor_parallel_size=2)])
    assert done.returncode != 0
    assert (
        "experts: 2 ranks would cut its experts' 384 inputs inside a group of 128"
        in done.stderr + done.stdout
    )
