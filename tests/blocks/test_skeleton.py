"""Which models can be walked, and which of their layers are quantized."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config

from mixllm.blocks.skeleton import linears
from mixllm.errors import MixllmError
from tests.blocks.walking import opened
from tests.models import VOCAB, write_tiny


def test_models_that_cannot_be_walked(tmp_path: Path) -> None:
    write_tiny(tmp_path / "embedder", "gemma3_text")
    file = tmp_path / "embedder" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "use_bidirectional_attention": True}))
    with pytest.raises(MixllmError, match="gemma3_text attends to later tokens, as an encoder does"):
        opened(tmp_path / "embedder")
    write_tiny(tmp_path / "newer", "llama")
    file = tmp_path / "newer" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "hidden_act": "newer"}))
    with pytest.raises(MixllmError, match=r"newer: transformers can't make a model .*\(KeyError: 'newer'\)"):
        opened(tmp_path / "newer")
    auto: Any = AutoModelForCausalLM
    sizes = {"vocab_size": VOCAB, "hidden_size": 24, "num_hidden_layers": 2, "pad_token_id": 0}
    auto.from_config(AutoConfig.for_model("mamba", **sizes)).save_pretrained(tmp_path / "mamba")
    with pytest.raises(MixllmError, match=r"mamba: its code takes the weight of mixer\.dt_proj itself"):
        opened(tmp_path / "mamba")
    # Its model rescales a layer's weight before any block is called.
    auto.from_config(AutoConfig.for_model("rwkv", **sizes)).save_pretrained(tmp_path / "rwkv")
    with pytest.raises(MixllmError, match=r"rwkv: its code takes the weight of attention\.output itself"):
        opened(tmp_path / "rwkv")
    gpt2 = GPT2Config(vocab_size=50, n_embd=24, n_layer=2, n_head=2)
    auto.from_config(gpt2).save_pretrained(tmp_path / "gpt2")
    with pytest.raises(MixllmError, match=r"no decoder blocks with nn.Linear layers in a gpt2 model"):
        opened(tmp_path / "gpt2")


def test_falcons_own_linear_layers_are_ordinary_ones(tmp_path: Path) -> None:
    auto: Any = AutoModelForCausalLM
    sizes = {"vocab_size": VOCAB, "hidden_size": 48, "num_attention_heads": 3, "num_hidden_layers": 2}
    config = AutoConfig.for_model("falcon", **sizes, bias=True)
    model = auto.from_config(config).eval()
    model.save_pretrained(tmp_path)
    decoder = opened(tmp_path)
    assert len(decoder.linears(1)) == 4
    ids = torch.arange(4, 21)[None]
    states = decoder.embed(ids)
    for _, block in decoder.walk(range(len(decoder))):
        states = block(states)
    torch.testing.assert_close(decoder.logits(states, ids), model(ids).logits)


def test_routers_are_left_alone() -> None:
    class Mixture(nn.Module):
        def __init__(self, gate: nn.Module) -> None:
            super().__init__()
            self.gate = gate
            self.experts = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))

    gate = nn.Linear(8, 4)
    for router in (gate, nn.ModuleDict({"wg": gate})):  # the latter is Hunyuan's
        block = nn.ModuleDict({"attention": nn.Linear(8, 8), "mlp": Mixture(router)})
        found = linears(block, "layers.3")
        assert list(found) == ["layers.3.attention", *(f"layers.3.mlp.experts.{i}" for i in range(4))]
    indexer = nn.ModuleDict({"wq_b": nn.Linear(8, 8)})
    assert list(linears(nn.ModuleDict({"o_proj": nn.Linear(8, 8), "indexer": indexer}), "b")) == ["b.o_proj"]
