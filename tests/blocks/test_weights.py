"""A decoder's tensors on their way from files: biases, tied ends, and what is wrong with them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaForCausalLM

from mixllm.errors import MixllmError
from tests.blocks.walking import close, opened, real, tokens, walk, whole_model
from tests.models import write_tiny


@pytest.mark.parametrize("architecture", ["qwen2", "gpt_neox"])
def test_biases_are_loaded(tmp_path: Path, architecture: str) -> None:
    model = write_tiny(tmp_path, architecture)
    decoder = opened(tmp_path)
    with decoder.block(1) as block:
        biased = {name: linear.bias for name, linear in block.linears.items() if linear.bias is not None}
        assert len(biased) == (3 if architecture == "qwen2" else 4)
        for name, bias in biased.items():
            assert torch.equal(bias, model.get_parameter(f"{name}.bias")) and bool(bias.abs().max() > 0)


def test_tied_embeddings_are_stored_once(tmp_path: Path) -> None:
    write_tiny(tmp_path, "llama", tie=True)
    model = opened(tmp_path).model
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize("kept", ["model.embed_tokens.weight", "lm_head.weight"])
def test_either_end_of_tied_embeddings_may_be_stored(tmp_path: Path, kept: str) -> None:
    model = write_tiny(tmp_path, "llama", tie=True)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    tensors[kept] = tensors.pop("model.embed_tokens.weight")
    save_file(tensors, file, metadata={"format": "pt"})
    ids = tokens(2)
    assert close(walk(opened(tmp_path), ids)["logits"], whole_model(model, ids)["logits"])


def test_damaged_weights(tmp_path: Path) -> None:
    write_tiny(tmp_path, "llama")
    file = tmp_path / "model.safetensors"
    whole = load_file(file)
    name = "model.layers.1.self_attn.q_proj.weight"

    def changed(tensor: Tensor | None) -> None:
        tensors = {k: v for k, v in whole.items() if k != name}
        if tensor is not None:
            tensors[name] = tensor
        save_file(tensors, file, metadata={"format": "pt"})

    for tensor, message in (
        (None, f"tensor {name} is missing"),
        (whole[name][:5].clone(), rf"tensor {name} is \[5, 72\], but config.json needs \[72, 72\]"),
        (whole[name].to(torch.int8), f"tensor {name} is torch.int8"),
        (whole[name].to(torch.float8_e4m3fn), f"tensor {name} is torch.float8_e4m3fn"),
        (whole[name].double(), f"tensor {name} is torch.float64; give floats of 16 or 32 bits"),
        (whole[name] / 0, f"tensor {name} holds NaN or inf"),
    ):
        changed(tensor)
        decoder = opened(tmp_path)
        resident = real(decoder)
        with pytest.raises(MixllmError, match=message), decoder.block(1):
            pass
        assert real(decoder) == resident


def test_missing_embedding(tmp_path: Path) -> None:
    write_tiny(tmp_path, "llama")
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    del tensors["lm_head.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(MixllmError, match=r"tensor lm_head.weight is missing"):
        opened(tmp_path)


def test_blocks_that_the_config_does_not_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tiny(tmp_path, "llama")
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "num_hidden_layers": 1}))
    with pytest.raises(
        MixllmError, match=r"tensor model.layers.1.\S+: beyond the blocks of config.json \(1\); it is not"
    ):
        opened(tmp_path)
    # Such as the layers that predict tokens further ahead, which the model's code is known to leave out.
    ignored = [r"model\.layers\.[12]\."]
    monkeypatch.setattr(LlamaForCausalLM, "_keys_to_ignore_on_load_unexpected", ignored, raising=False)
    assert len(opened(tmp_path)) == 1
