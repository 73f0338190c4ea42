"""What the short way leaves to the model's own code, which gives its own results then."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from transformers import DynamicCache, StaticCache

from mixllm.decoding.usual import usual_step
from tests.decoding.models import ids, prefilled, quantized, short, step

PAST = 21


@pytest.fixture(scope="module")
def model() -> Any:
    return quantized()


def call(model: Any, tokens: int = 1, **others: Any) -> dict[str, Any]:
    """What a causal language model gives its decoder in a usual step, with `others` instead."""
    mask = torch.ones(1, PAST + tokens, dtype=torch.int64)
    positions = torch.arange(PAST, PAST + tokens)[None]
    usual = {
        "input_ids": ids(tokens),
        "attention_mask": mask,
        "position_ids": positions,
        "inputs_embeds": None,
    }
    return {**usual, "cache": prefilled(model), "use_cache": True, **others}


@pytest.mark.parametrize("tokens", [1, 2, 16])
def test_steps_are_found(model: Any, tokens: int) -> None:
    with torch.no_grad():
        found = usual_step(model.model, call(model, tokens))
        assert found is not None and (found.past, found.x.shape) == (PAST, (1, tokens, 72))
        old = call(model, tokens, attention_mask=None, position_ids=None)
        old = {("past_key_values" if name == "cache" else name): value for name, value in old.items()}
        assert (
            usual_step(model.model, {**old, "output_attentions": False, "cache_position": None}) is not None
        )
        embeds = call(model, tokens, input_ids=None, inputs_embeds=found.x)
        again = usual_step(model.model, embeds)
        assert again is not None and again.x is found.x


def padded(tokens: int) -> torch.Tensor:
    mask = torch.ones(1, PAST + tokens, dtype=torch.int64)
    mask[0, 0] = 0
    return mask


def of_one_cache_less(model: Any) -> DynamicCache:
    cache = prefilled(model)
    del cache.layers[-1]
    return cache


def sliding(model: Any) -> DynamicCache:
    cache = prefilled(model)
    cache.layers[1] = type("Other", (type(cache.layers[1]),), {})()
    return cache


def in_half(model: Any) -> DynamicCache:
    cache = prefilled(model)
    cache.layers[2].values = cache.layers[2].values.half()
    return cache


UNUSUAL: dict[str, Any] = {
    "many tokens": lambda model: call(model, 17),
    "no cache": lambda model: call(model, cache=None),
    "an empty cache": lambda model: call(model, cache=DynamicCache(config=model.config)),
    "a static cache": lambda model: call(model, cache=StaticCache(model.config, max_cache_len=32)),
    "another cache's layers": lambda model: call(model, cache=sliding(model)),
    "a layer less": lambda model: call(model, cache=of_one_cache_less(model)),
    "another dtype": lambda model: call(model, cache=in_half(model)),
    "padding": lambda model: call(model, attention_mask=padded(1)),
    "a mask of four dimensions": lambda model: call(model, attention_mask=torch.zeros(1, 1, 1, PAST + 1)),
    "a longer mask": lambda model: call(model, attention_mask=torch.ones(1, PAST + 2)),
    "other positions": lambda model: call(model, position_ids=torch.tensor([[PAST + 1]])),
    "two sequences": lambda model: call(model, input_ids=ids(2).T),
    "hidden states": lambda model: call(model, output_hidden_states=True),
    "attentions": lambda model: call(model, output_attentions=True),
    "a tuple": lambda model: call(model, return_dict=False),
    "something new": lambda model: call(model, adapter_names=["a"]),
    "no use of the cache": lambda model: call(model, use_cache=False),
}


@pytest.mark.parametrize("what", UNUSUAL)
@torch.no_grad()
def test_anything_unusual_is_none(model: Any, what: str) -> None:
    assert usual_step(model.model, UNUSUAL[what](model)) is None


@pytest.mark.parametrize(
    "mode", [torch.enable_grad(), torch.autocast("cpu", torch.bfloat16)], ids=["enable_grad", "autocast"]
)
@torch.no_grad()
def test_modes_of_torch(model: Any, mode: AbstractContextManager[Any]) -> None:
    usual = call(model)
    with mode:
        assert usual_step(model.model, usual) is None


@torch.no_grad()
def test_training(model: Any) -> None:
    usual = call(model)
    model.model.train()
    try:
        assert usual_step(model.model, usual) is None
    finally:
        model.eval()


@pytest.mark.parametrize("setting, value", [("output_hidden_states", True), ("return_dict", False)])
@torch.no_grad()
def test_the_config_may_ask_for_more(model: Any, setting: str, value: bool) -> None:
    usual, before = call(model), getattr(model.config, setting)
    setattr(model.config, setting, value)
    try:
        assert usual_step(model.model, usual) is None
    finally:
        setattr(model.config, setting, before)


@torch.no_grad()
def test_a_window_that_is_full(model: Any) -> None:
    usual = call(model, 3)
    for window, found in ((PAST + 3, True), (PAST + 2, False)):
        model.config.sliding_window = window
        try:
            assert (usual_step(model.model, usual) is not None) is found
        finally:
            del model.config.sliding_window


def test_own_code_answers_what_is_unusual(model: Any) -> None:
    """In the middle of a usual text: two sequences with padding, and hidden states."""
    mine, _ = short(model)
    cache = prefilled(mine)
    step(mine, ids(1), cache)
    step(mine, ids(1), cache)
    two = ids(12).view(2, 6)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1] * 6])
    with torch.no_grad():
        a, b = (each(two, attention_mask=mask).logits for each in (mine, model))
        torch.testing.assert_close(a, b)
        assert len(mine(ids(3), output_hidden_states=True).hidden_states) == 4
