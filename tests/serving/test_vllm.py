"""vLLM against transformers, on tiny models in float32.

Both must agree to float32's rounding, but where that moves an activation over a border between two int8
codes, and all that follows from it: a few thousandths of a nat in models so small. One activation scale
that is wrong (a rank's in place of the token's) moves the mean by .02, so MEAN tells the two apart.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.format.layers import write_quantized
from tests.serving.engine import PROMPTS
from tests.serving.vllm_process import engines, results

import mixllm
from mixllm.config import PROFILES, Format
from mixllm.format.parts import select_inputs
from mixllm.integrations.vllm import register
from mixllm.kernels import prepare

pytestmark = pytest.mark.vllm

MEAN, MOST = 5e-3, 5e-2
# Head sizes that vLLM's CPU attention has; inputs that are no whole number of groups.
SIZES: dict[str, Any] = {
    "hidden_size": 200, "intermediate_size": 328, "head_dim": 32, "num_attention_heads": 4
}  # fmt: skip
NARROW: dict[str, Any] = {"hidden_size": 96, "num_attention_heads": 3, "num_key_value_heads": 1}
# Fused q, k, v and gate, up; a bias; norms of q and k and windows; layers that are fused in the checkpoint.
MODELS: dict[str, tuple[dict[str, Any], Format]] = {
    "llama": (SIZES, PROFILES["fast"]),
    "qwen2": (NARROW, PROFILES["paper"]),
    "gemma3_text": (SIZES, Format(weight_scale="row", activation_group=256)),
    "phi3": (NARROW, PROFILES["fast"]),
}
# Two ranks have two whole groups each of every row-parallel layer's inputs.
SPLIT: dict[str, Any] = {
    "hidden_size": 256, "intermediate_size": 512, "head_dim": 64, "num_attention_heads": 4
}  # fmt: skip


def job(model: Path, **more: Any) -> dict[str, Any]:
    return {"model": str(model), "dtype": "float32", "enforce_eager": True, **more}


def errors(answers: list[dict[str, Any]], model: torch.nn.Module) -> Iterator[torch.Tensor]:
    """vLLM's log-probabilities, of prompts (prefill) and answers (decoding), against `model`'s, by token."""
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        ids = torch.tensor([prompt + answer["answer"]])
        with torch.no_grad():
            expected = model(ids).logits[0, :-1].float().log_softmax(-1)
        found = torch.tensor(answer["logprobs"])
        yield (found - expected.gather(1, ids[0, 1:, None])[-len(found) :, 0]).abs()


def check(answers: list[dict[str, Any]], model: torch.nn.Module) -> None:
    for error in errors(answers, model):
        assert error.mean() < MEAN and error.max() < MOST, error


def make(path: Path, architecture: str, format: Format, sizes: dict[str, Any]) -> Path:
    path.mkdir()
    return write_quantized(path, architecture, format, **sizes)


def test_models_give_the_log_probabilities_of_transformers(tmp_path: Path) -> None:
    paths = {name: make(tmp_path / name, name, format, sizes) for name, (sizes, format) in MODELS.items()}
    found = results([job(path) for path in paths.values()])
    for path, answers in zip(paths.values(), found, strict=True):
        check(answers, mixllm.load(path))


def test_compiled_graphs_give_the_same(tmp_path: Path) -> None:
    path = make(tmp_path / "llama", "llama", PROFILES["fast"], SIZES)
    (answers,) = results([job(path, enforce_eager=False)], compile=True)
    check(answers, mixllm.load(path))


def test_prompts_in_pieces_and_from_the_cache_give_the_same(tmp_path: Path) -> None:
    path = make(tmp_path / "llama", "llama", PROFILES["fast"], SIZES)
    pieces = job(path, max_num_batched_tokens=32, max_num_seqs=4)
    cold, warm = results([pieces, {**pieces, "enable_prefix_caching": True, "block_size": 32}])
    assert [answer["cached"] for answer in cold] == [0, 0]
    assert [answer["cached"] for answer in warm] == [len(ids) // 32 * 32 for ids in PROMPTS] == [32, 0]
    model = mixllm.load(path)
    check(cold, model)
    check(warm, model)


def test_float16_is_as_near_as_transformers_is_in_it(tmp_path: Path) -> None:
    path = make(tmp_path / "llama", "llama", PROFILES["fast"], SIZES)
    (answers,) = results([job(path, dtype="float16")])
    model, half = mixllm.load(path), mixllm.load(path, dtype=torch.float16)
    for prompt, answer, error in zip(PROMPTS, answers, errors(answers, model), strict=True):
        ids = torch.tensor([prompt + answer["answer"]])
        with torch.no_grad():
            exact, rounded = (m(ids).logits[0, :-1].float().log_softmax(-1) for m in (model, half))
        usual = (rounded - exact).gather(1, ids[0, 1:, None]).abs().mean()
        assert 0 < error.mean() < 1.5 * usual


def test_two_ranks(tmp_path: Path) -> None:
    formats = {"paper": PROFILES["paper"], "fast": PROFILES["fast"]}
    paths = {name: make(tmp_path / name, "llama", format, SPLIT) for name, format in formats.items()}
    paper, fast = results([job(path, tensor_parallel_size=2) for path in paths.values()])
    # Scales of activations are a group's: the ranks together compute what one computes.
    check(paper, mixllm.load(paths["paper"]))
    # One scale a token is one for each rank's part of the inputs.
    check(fast, in_two_parts(paths["fast"]))


def in_two_parts(path: Path) -> torch.nn.Module:
    """The model whose row-parallel layers are sums of two layers, of half the inputs each."""
    model = mixllm.load(path)
    for name, layer in model.named_modules():
        if isinstance(layer, mixllm.MixLinear) and name.endswith(("o_proj", "down_proj")):
            half = layer.in_features // 2
            cuts = ((0, half), (half, layer.in_features))
            layer._kernel = Sum(
                [select_inputs(layer.stored, layer.format, *cut) for cut in cuts], layer.format
            )
    return model


class Sum:
    def __init__(self, parts: list[Any], format: Format) -> None:
        self.parts = [(prepare(part, format), part.in_features) for part in parts]

    def __call__(self, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        assert bias is None
        pieces = x.split([inputs for _, inputs in self.parts], dim=-1)
        return sum(kernel(piece) for (kernel, _), piece in zip(self.parts, pieces, strict=True))


def test_a_quantized_draft_model_changes_nothing(tmp_path: Path) -> None:
    path = make(tmp_path / "llama", "llama", PROFILES["fast"], SIZES)
    draft = make(tmp_path / "draft", "llama", PROFILES["paper"], {**SIZES, "num_hidden_layers": 1})
    drafts = {"method": "draft_model", "model": str(draft), "num_speculative_tokens": 3}
    (answers,) = results([job(path, quantization="mixllm", speculative_config=drafts)])
    check(answers, mixllm.load(path))


def test_embeddings_are_those_of_transformers(tmp_path: Path) -> None:
    path = make(tmp_path / "llama", "llama", PROFILES["fast"], SIZES)
    (found,) = results([job(path, runner="pooling")])
    model = mixllm.load(path)
    for prompt, answer in zip(PROMPTS, found, strict=True):
        with torch.no_grad():
            last = model.model(torch.tensor([prompt])).last_hidden_state[0, -1]
        # A code on the other side of a border (see above) moves a hundredth of it, another token all of it.
        assert torch.cosine_similarity(torch.tensor(answer["embedding"]), last, dim=0) > 0.999


def test_dummy_weights_need_no_tensors(tmp_path: Path) -> None:
    path = make(tmp_path / "llama", "llama", PROFILES["fast"], SIZES)
    (path / "model.safetensors").unlink()
    ((first, _),) = results([job(path, load_format="dummy")])
    assert all(-50 < value < 0 for value in first["logprobs"])


def test_ranks_that_would_cut_a_group_are_refused(tmp_path: Path) -> None:
    path = make(tmp_path / "llama", "llama", PROFILES["fast"], {**SPLIT, "intermediate_size": 384})
    done = engines([job(path, tensor_parallel_size=2)])
    assert done.returncode != 0
    reason = (
        "model.layers.0.mlp.down_proj: 2 ranks would cut its 384 inputs inside a group of 128; "
        "--tensor-parallel-size 1 works"
    )
    assert f"MixllmError: {reason}" in done.stderr + done.stdout


def test_a_load_format_that_keeps_no_such_layer_is_refused(tmp_path: Path) -> None:
    path = make(tmp_path / "llama", "llama", PROFILES["fast"], SIZES)
    done = engines([job(path, load_format="sharded_state")])
    assert done.returncode != 0
    reason = "--load-format sharded_state can't load mixllm layers; leave it out"
    assert f"MixllmError: model.layers.0.self_attn.qkv_proj: {reason}" in done.stderr + done.stdout


def test_a_float_model_is_not_taken_for_a_quantized_one(tmp_path: Path) -> None:
    path = make(tmp_path / "llama", "llama", PROFILES["fast"], SIZES).with_name("float")
    done = engines([job(path, quantization="mixllm")])
    assert done.returncode != 0
    reason = "--quantization mixllm: the model's config.json has no quantization_config; give a directory"
    assert done.stderr.strip().splitlines()[-1].startswith(f"mixllm.errors.MixllmError: {reason}")


def test_a_broken_checkpoint_stops_with_its_reason(tmp_path: Path) -> None:
    path = make(tmp_path / "llama", "llama", PROFILES["fast"], SIZES)
    file = path / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.1.mlp.up_proj.scales8"][0] = float("nan")
    save_file(tensors, file, metadata={"format": "pt"})
    done = engines([job(path)])
    reason = "model.layers.1.mlp.up_proj.scales8: holds a NaN; scales are finite and above 0"
    assert done.returncode != 0
    assert done.stderr.strip().splitlines()[-1] == f"mixllm.errors.MixllmError: {file}: tensor {reason}"


def test_an_untested_vllm_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vllm.__version__", "0.99.1")
    with pytest.warns(RuntimeWarning, match=r"tested with vLLM 0\.26, 0\.31, 0\.32, not with 0\.99\.1"):
        register()


def test_a_newer_version_is_refused(tmp_path: Path) -> None:
    path = make(tmp_path / "llama", "llama", PROFILES["fast"], SIZES)
    config = json.loads((path / "config.json").read_text())
    config["quantization_config"]["version"] = 9
    (path / "config.json").write_text(json.dumps(config))
    done = engines([job(path)])
    assert done.returncode != 0
    assert "version 9 is a newer mixllm's" in done.stderr.strip().splitlines()[-1]
