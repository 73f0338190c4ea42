"""The walk over blocks against the whole model: hidden states, logits and gradients."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from mixllm.blocks import losses
from tests.blocks.walking import close, opened, real, tokens, walk, whole_model
from tests.models import ARCHITECTURES, VOCAB, tiny_config, write_tiny


@pytest.mark.parametrize("tie", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_walk_equals_the_whole_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, architecture: str, tie: bool
) -> None:
    # Seven tokens of three windows at once, so the loss is made in pieces, the last one short.
    monkeypatch.setitem(losses.LOGITS_AT_ONCE, "cpu", 7 * 3 * VOCAB)
    model = write_tiny(tmp_path, architecture, tie=tie)
    ids = tokens(3)
    expected, got = whole_model(model, ids), walk(opened(tmp_path), ids)
    assert close(got["logits"], expected["logits"])
    for kind in ("states", "gradients"):
        assert len(got[kind]) == len(expected[kind]) == model.config.num_hidden_layers + 1
        assert all(close(a, b) for a, b in zip(got[kind], expected[kind], strict=True)), kind
    for kind in ("inputs", "deltas"):
        assert got[kind].keys() == expected[kind].keys()
        assert all(close(got[kind][name], tensor) for name, tensor in expected[kind].items()), kind


def test_a_weight_put_away_is_gone_while_its_block_is_there(tmp_path: Path) -> None:
    write_tiny(tmp_path, "llama")
    decoder = opened(tmp_path)
    with decoder.block(0) as block:
        linear = next(iter(block.linears.values()))
        weight = weakref.ref(linear.weight.untyped_storage())
        linear.weight = nn.Parameter(linear.weight.to("meta"), requires_grad=False)
        assert weight() is None


def test_one_block_is_in_memory(tmp_path: Path) -> None:
    model = write_tiny(tmp_path, "llama")
    decoder = opened(tmp_path)
    sizes = [sum(p.numel() for p in block.parameters()) for block in model.model.layers]
    outside = sum(p.numel() for p in model.parameters()) - sum(sizes)
    assert real(decoder) == outside
    for i, size in enumerate(sizes):
        with decoder.block(i) as block:
            assert real(decoder) == outside + size
            assert not any(p.requires_grad or p.is_meta for p in block.module.parameters())
            assert set(decoder.linears(i)) == set(block.linears)
        assert real(decoder) == outside
        assert all(linear.weight.is_meta for linear in decoder.linears(i).values())
    with pytest.raises(KeyboardInterrupt), decoder.block(0):
        raise KeyboardInterrupt
    assert real(decoder) == outside


def test_linears_are_named_as_the_checkpoint_names_them(tmp_path: Path) -> None:
    model = write_tiny(tmp_path, "phi3")
    decoder = opened(tmp_path)
    assert decoder.prefix == "model.layers" and len(decoder) == 2
    names = ["self_attn.o_proj", "self_attn.qkv_proj", "mlp.gate_up_proj", "mlp.down_proj"]
    assert list(decoder.linears(1)) == [f"model.layers.1.{name}" for name in names]
    with decoder.block(1) as block:
        for name, linear in block.linears.items():
            assert torch.equal(linear.weight, model.get_parameter(f"{name}.weight"))


def test_replaced_linear_runs_until_the_context_ends(tmp_path: Path) -> None:
    write_tiny(tmp_path, "llama")
    decoder = opened(tmp_path)
    hidden = decoder.embed(tokens(2))
    name = "model.layers.0.mlp.down_proj"

    class Zero(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.new_zeros(*x.shape[:-1], 72)

    with decoder.block(0) as block:
        plain = block(hidden)
        for linear_name in block.linears:
            if linear_name == name:
                block.replace(name, Zero())
        silent = block(hidden)
        assert isinstance(block.linears[name], nn.Linear)
        with torch.no_grad():
            block.linears["model.layers.0.mlp.up_proj"].weight.zero_()
    assert not torch.equal(plain, silent)
    # What was changed in memory is not in the source.
    with decoder.block(0) as block:
        assert torch.equal(block(hidden), plain)


def test_shapes_are_learned_one_by_one(tmp_path: Path) -> None:
    model = write_tiny(tmp_path, "gemma3_text")
    decoder = opened(tmp_path)
    for batch, length in ((1, 30), (2, 5), (1, 30)):
        ids = tokens(batch, length=length)
        assert close(walk(decoder, ids)["logits"], whole_model(model, ids)["logits"])
    with decoder.block(0) as block, pytest.raises(ValueError, match=r"no token ids of shape \[1, 9\]"):
        block(torch.zeros(1, 9, 72))


def test_half_precision_runs_in_its_own_dtype(tmp_path: Path) -> None:
    model = write_tiny(tmp_path, "gemma3_text", dtype=torch.bfloat16)
    ids = tokens(2)
    auto: Any = AutoModelForCausalLM
    model = auto.from_pretrained(tmp_path, dtype=torch.bfloat16)
    got = walk(opened(tmp_path, torch.bfloat16), ids)
    assert got["states"][-1].dtype == got["logits"].dtype == torch.bfloat16
    assert all(gradient.dtype == torch.bfloat16 for gradient in got["gradients"])
    assert torch.equal(got["logits"], model(ids).logits)


def test_tiny_configs_are_odd() -> None:
    configs = [tiny_config(architecture) for architecture in ARCHITECTURES]
    assert all(c.hidden_size % 128 and c.intermediate_size % 128 for c in configs)
    assert {c.num_hidden_layers for c in configs} == {2, 3}
    assert isinstance(configs[0], type(AutoConfig.for_model("llama")))
