"""Measurements against a computation without chunks, in float64."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import mixllm.evaluate
from mixllm.errors import MixllmError
from mixllm.evaluate import Measurement, mean_and_error, measure, paired_difference
from tests.models import VOCAB, tiny_model


def tokens(count: int, length: int) -> Tensor:
    return torch.randint(VOCAB, (count, length), generator=torch.Generator().manual_seed(3))


def test_a_model_of_another_vocabulary_is_named() -> None:
    other = tiny_model("llama")
    other.resize_token_embeddings(VOCAB - 5)
    with pytest.raises(
        MixllmError, match=f"^odd: it knows {VOCAB - 5} tokens and the float model {VOCAB}; give"
    ):
        measure({"odd": other}, tiny_model("llama"), tokens(1, 9))


def naive(model: Any, reference: Any, windows: Tensor) -> dict[str, list[float]]:
    rows: dict[str, list[float]] = {"nll": [], "kl": [], "top1": []}
    for ids in windows.tolist():
        with torch.no_grad():
            q, p = (m(torch.tensor([ids])).logits[0].double().softmax(-1).log() for m in (model, reference))
        positions = range(len(ids) - 1)
        rows["nll"].append(sum(-float(q[t, ids[t + 1]]) for t in positions) / len(positions))
        rows["kl"].append(sum(float((p[t].exp() * (p[t] - q[t])).sum()) for t in positions) / len(positions))
        rows["top1"].append(sum(int(q[t].argmax() == p[t].argmax()) for t in positions) / len(positions))
    return rows


@pytest.mark.parametrize("at_once", [1, 5, 128])
def test_measure_equals_the_naive_computation(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    monkeypatch.setattr(mixllm.evaluate, "TOKENS_AT_ONCE", at_once)
    reference = tiny_model("llama")
    models = {"near": tiny_model("llama"), "far": tiny_model("llama", seed=1)}
    with torch.no_grad():
        models["near"].lm_head.weight.add_(0.05 * torch.randn(VOCAB, 72))
    windows = tokens(3, 17)
    steps: list[tuple[int, int]] = []
    got = measure(models, reference, windows, lambda done, total: steps.append((done, total)))
    assert list(got) == ["float", "near", "far"] and steps == [(1, 3), (2, 3), (3, 3)]
    for name, model in {"float": reference, **models}.items():
        for kind, expected in naive(model, reference, windows).items():
            values = getattr(got[name], kind)
            assert values.dtype == torch.float64 and values.shape == (3,)
            assert torch.allclose(values, torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=1e-6)
    assert 0 < float(got["near"].kl.mean()) < float(got["far"].kl.mean())
    assert bool((got["float"].kl == 0).all()) and bool((got["float"].top1 == 1).all())


def test_perplexity_is_the_papers() -> None:
    """exp of the mean of the losses that transformers gives for each window, as GPTQ's script has it."""
    model, windows = tiny_model("qwen2"), tokens(4, 23)
    with torch.no_grad():
        losses = [float(model(ids[None], labels=ids[None]).loss) for ids in windows]
    got = measure({}, model, windows)["float"].perplexity
    assert got == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-5)


def test_half_precision_logits_are_compared_in_float32() -> None:
    reference = tiny_model("llama")
    got = measure({"half": tiny_model("llama").bfloat16()}, reference, tokens(2, 15))["half"]
    assert 1e-7 < float(got.kl.mean()) < 1e-2


@given(st.lists(st.tuples(st.floats(-5, 5), st.floats(-5, 5)), min_size=2, max_size=30))
def test_paired_difference(pairs: list[tuple[float, float]]) -> None:
    a, b = (torch.tensor(column, dtype=torch.float64) for column in zip(*pairs, strict=True))
    mean, error = paired_difference(a, b)
    differences = [x - y for x, y in pairs]
    expected = sum(differences) / len(differences)
    variance = sum((d - expected) ** 2 for d in differences) / (len(differences) - 1)
    assert mean == pytest.approx(expected, abs=1e-9)
    assert error == pytest.approx(math.sqrt(variance / len(differences)), abs=1e-9)


def test_json_has_means_and_errors() -> None:
    nll = torch.tensor([2.0, 3.0, 4.0], dtype=torch.float64)
    measured = Measurement(nll=nll, kl=nll / 10, top1=torch.tensor([0.5, 0.5, 0.5]))
    data = json.loads(json.dumps(measured.to_json()))
    assert data["windows"] == 3 and data["nll"] == 3.0 and data["top1_error"] == 0.0
    assert data["perplexity"] == pytest.approx(math.exp(3.0))
    assert data["nll_error"] == pytest.approx(1 / math.sqrt(3))
    assert data["perplexity_error"] == pytest.approx(math.exp(3.0) / math.sqrt(3))
    assert data["kl"] == pytest.approx(0.3)


@pytest.mark.parametrize("nll", [2000.0, math.inf, math.nan])
def test_a_broken_models_figures_are_no_error(nll: float) -> None:
    """Its perplexity may be more than a float holds."""
    broken = torch.tensor([nll, 3.0], dtype=torch.float64)
    measured = Measurement(nll=broken, kl=broken, top1=torch.zeros(2))
    assert not math.isfinite(measured.perplexity)
    data = json.loads(json.dumps(measured.to_json(), allow_nan=False))
    assert data["perplexity"] is None and data["top1"] == 0.0


def test_one_window_has_no_error() -> None:
    assert math.isnan(mean_and_error(torch.tensor([1.0]))[1])
    one = measure({}, tiny_model("llama"), tokens(1, 9))["float"].to_json()
    assert one["nll_error"] is None and one["perplexity_error"] is None
    json.dumps(one, allow_nan=False)
