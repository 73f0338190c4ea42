"""The short way against the model's own code: several steps, several architectures, one cache."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import nn
from transformers import DynamicCache

from mixllm.config import PROFILES
from mixllm.kernels.cpu import decoder, instruction_sets, prepare
from mixllm.nn import MixLinear
from tests.decoding.models import ids, prefilled, quantized, short, step

# An int8 code moves by one where an activation differs in its last bit; own code differs as much from itself
# between two implementations of attention.
CLOSE = {torch.float32: 0.03, torch.float16: 0.15, torch.bfloat16: 0.5}
KINDS: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama-biases": {"attention_bias": True, "mlp_bias": True},
    "llama-odd-heads": {"head_dim": 22, "num_attention_heads": 3, "num_key_value_heads": 1},
    "qwen2": {},
    "qwen3": {},
    "mistral": {"sliding_window": None},
}


def both(kind: str = "llama", dtype: torch.dtype = torch.float32, **options: Any) -> tuple[Any, Any, Any]:
    own = quantized(kind.split("-")[0], dtype=dtype, **KINDS[kind], **options)
    return own, *short(own)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", CLOSE, ids=str)
def test_agrees_with_the_models_own_code(kind: str, dtype: torch.dtype) -> None:
    own, model, way = both(kind, dtype)
    mine, theirs = prefilled(model), prefilled(own)
    for i, tokens in enumerate((1, 1, 3, 1, 16, 1, 17, 1)):
        y, expected = step(model, ids(tokens, i), mine), step(own, ids(tokens, i), theirs)
        assert float((y - expected).abs().amax()) < CLOSE[dtype]
    assert way.structure is not None and not way.closed
    for ours, other in zip(mine.layers, theirs.layers, strict=True):
        assert ours.keys.shape == other.keys.shape == ours.values.shape
        torch.testing.assert_close(ours.keys, other.keys, rtol=0.1, atol=CLOSE[dtype])


@pytest.mark.parametrize("profile", PROFILES)
def test_own_code_runs_once(profile: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first step is computed both ways; from then on the blocks' own code is not called."""
    model, _ = short(quantized(format=PROFILES[profile]))
    cache, calls = prefilled(model), []
    kind = type(model.model.layers[0])
    forward = kind.forward
    monkeypatch.setattr(kind, "forward", lambda *args, **kwargs: calls.append(1) or forward(*args, **kwargs))
    for i in range(4):
        step(model, ids(1, i), cache)
    assert len(calls) == len(model.model.layers)


@pytest.mark.parametrize("isa", instruction_sets())
def test_all_instruction_sets_give_the_same_bits(isa: str) -> None:
    def run(isa: str) -> torch.Tensor:
        model, way = short(quantized(dtype=torch.bfloat16))
        for layer in model.modules():
            if isinstance(layer, MixLinear):
                layer._kernel = prepare(layer.stored, layer.format, isa)
        cache = prefilled(model)
        step(model, ids(1), cache)
        y = torch.cat([step(model, ids(3, i), cache) for i in range(9)])
        assert way.structure.decoder.isa == instruction_sets().index(isa)
        return y

    assert torch.equal(run(isa), run("portable"))


@pytest.mark.parametrize("threads", [2, 3])
def test_any_number_of_threads_gives_the_same_bits(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = short(quantized())
    before, cache = torch.get_num_threads(), prefilled(model, 200)
    step(model, ids(1), cache)
    other = copy.deepcopy(cache)
    alone = step(model, ids(16), cache)
    torch.set_num_threads(threads)
    try:
        assert torch.equal(step(model, ids(16), other), alone)
    finally:
        torch.set_num_threads(before)


def test_generates_the_same_text() -> None:
    own, model, way = both()
    options = {"max_new_tokens": 40, "do_sample": False, "pad_token_id": 0}
    for length in (5, 30):
        assert torch.equal(model.generate(ids(length), **options), own.generate(ids(length), **options))
    assert way.structure is not None


def test_the_cache_grows_and_what_it_gave_before_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder, "ROOM", 4)
    own, model, _ = both()
    mine, theirs = prefilled(model), prefilled(own)
    before = None
    for i in range(19):
        torch.testing.assert_close(
            step(model, ids(1, i), mine), step(own, ids(1, i), theirs), rtol=0, atol=CLOSE[torch.float32]
        )
        if before is not None:
            assert torch.equal(before[0], before[1])
            assert torch.equal(before[0], mine.layers[1].keys[:, :, : before[0].shape[2]])
        before = mine.layers[1].keys, mine.layers[1].keys.clone()


def test_a_cache_may_be_copied_cut_and_written_by_others() -> None:
    own, model, _ = both()
    cache = prefilled(model)
    step(model, ids(1), cache)
    step(model, ids(2), cache)
    branch = copy.deepcopy(cache)
    first = step(model, ids(1, 5), cache)
    step(model, ids(1, 6), branch)
    assert torch.equal(first, step(model, ids(1, 5), cut(cache, 1)))
    step(own, ids(4, 7), cache)
    step(own, ids(4, 7), branch_of_own := copy.deepcopy(cache))
    y, expected = step(model, ids(1, 8), cut(cache, 0)), step(own, ids(1, 8), cut(branch_of_own, 4))
    torch.testing.assert_close(y, expected, rtol=0, atol=CLOSE[torch.float32])


def cut(cache: DynamicCache, tokens: int) -> DynamicCache:
    cache.crop(-tokens)
    return cache


def test_weights_may_change() -> None:
    """A copy of other weights, loaded into the model: what was described of the old ones is not used."""
    _, model, way = both()
    cache = prefilled(model)
    step(model, ids(1), cache)
    described, other = way.structure, quantized(seed=1)
    model.load_state_dict(other.state_dict())
    cache, theirs = prefilled(model), prefilled(other)
    for i in range(3):
        y, expected = step(model, ids(1, i), cache), step(other, ids(1, i), theirs)
        torch.testing.assert_close(y, expected, rtol=0, atol=CLOSE[torch.float32])
    assert way.structure is not described
    model.to(torch.bfloat16)
    step(model, ids(1), cache := prefilled(model))
    assert step(model, ids(1), cache).isfinite().all()
    assert cache.layers[0].keys.dtype == torch.bfloat16


def test_hooks_are_called() -> None:
    _, model, _ = both()
    cache, seen = prefilled(model), []
    step(model, ids(1), cache)
    hook = model.model.layers[1].mlp.register_forward_hook(lambda *args: seen.append(1))
    step(model, ids(1), cache)
    assert len(seen) == 1
    hook.remove()
    step(model, ids(1), cache)
    assert len(seen) == 1


class OtherNorm(nn.Module):
    """Gemma's, under Llama's names."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.weight, self.eps = norm.weight, norm.variance_epsilon

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.rms_norm(x, x.shape[-1:], self.weight + 1, self.eps)


def other_activation(model: Any) -> None:
    model.layers[1].mlp.act_fn = nn.GELU()


def other_norm(model: Any) -> None:
    model.layers[2].input_layernorm = OtherNorm(model.layers[2].input_layernorm)


def other_last_norm(model: Any) -> None:
    model.norm = OtherNorm(model.norm)


@pytest.mark.parametrize(
    "change, where",
    [
        (other_activation, "block 1"),
        (other_norm, "block 2, keys and values"),
        (other_last_norm, "the last norm"),
    ],
)
def test_a_model_that_only_looks_like_llama_is_told_and_runs_its_own_code(change: Any, where: str) -> None:
    own = quantized()
    change(own.model)
    model, way = short(own)
    mine, theirs = prefilled(model), prefilled(own)
    with pytest.warns(UserWarning, match=rf"LlamaModel: .* differ from the model's own code in {where};"):
        step(model, ids(1), mine)
    step(own, ids(1), theirs)
    # The heads sum in another order.
    torch.testing.assert_close(step(model, ids(1), mine), step(own, ids(1), theirs))
    assert way.closed


def test_copies_and_pickles_of_a_model_have_ways_of_their_own() -> None:
    _, model, way = both()
    cache = prefilled(model)
    step(model, ids(1), cache)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        theirs = vars(other.model)["forward"].__self__
        assert theirs is not way and theirs.decoder is other.model and theirs.structure is None
        step(other, ids(1, 1), copy.deepcopy(cache))
        assert theirs.structure is not None
        y = step(other, ids(1, 2), copy.deepcopy(cache))
        assert torch.equal(y, step(model, ids(1, 2), copy.deepcopy(cache)))


def test_a_decoder_is_traced_by_its_own_code() -> None:
    own, model, way = both()
    cache, theirs = prefilled(model), prefilled(own)
    y = step(torch.compile(model, backend="eager"), ids(1), cache)
    torch.testing.assert_close(y, step(own, ids(1), theirs))
    assert way.structure is None
