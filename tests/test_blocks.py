"""The walk over blocks against the whole model: hidden states, logits and gradients."""

from __future__ import annotations

import json
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, LlamaForCausalLM

import mixllm.blocks.decoder
from mixllm.blocks import Decoder
from mixllm.blocks.skeleton import linears
from mixllm.errors import MixllmError
from mixllm.source import Source
from tests.models import ARCHITECTURES, VOCAB, tiny_config, write_tiny

CPU = torch.device("cpu")
LENGTH = 21


def opened(path: Path, dtype: torch.dtype = torch.float32) -> Decoder:
    return Decoder.open(Source(path), CPU, dtype)


def tokens(batch: int, seed: int = 0, length: int = LENGTH) -> Tensor:
    return torch.randint(VOCAB, (batch, length), generator=torch.Generator().manual_seed(seed))


def close(a: Tensor, b: Tensor) -> bool:
    """Equal to float32 rounding, against the tensor's largest value."""
    return a.shape == b.shape and bool((a - b).abs().max() <= 2e-5 * b.abs().max())


def real(decoder: Decoder) -> int:
    return sum(p.numel() for p in decoder.model.parameters() if not p.is_meta)


@contextmanager
def taps(linears: dict[str, nn.Linear]) -> Iterator[tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """What each linear reads, and its output gradient, by name."""
    inputs: dict[str, Tensor] = {}
    deltas: dict[str, Tensor] = {}

    def tap(name: str) -> Any:
        def forward(_: nn.Module, args: tuple[Tensor, ...], output: Any) -> None:
            inputs[name] = args[0].detach()
            output.register_hook(lambda grad: deltas.__setitem__(name, grad))

        return forward

    handles = [linear.register_forward_hook(tap(name)) for name, linear in linears.items()]
    yield inputs, deltas
    for handle in handles:
        handle.remove()


def whole_model(model: Any, ids: Tensor) -> dict[str, Any]:
    """Losses [B], states and gradients at every block boundary, inputs and deltas, by plain autograd."""
    blocks = next(m for m in model.modules() if isinstance(m, nn.ModuleList))
    states: list[Tensor] = []

    def keep(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        states.append(args[0])

    def last(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        states.append(output)

    handles = [block.register_forward_pre_hook(keep) for block in blocks]
    handles.append(blocks[-1].register_forward_hook(last))
    linears = {
        name: module
        for name, module in model.named_modules()
        if type(module) is nn.Linear and module is not model.get_output_embeddings()
    }
    with taps(linears) as (inputs, deltas):
        logits = model(input_ids=ids, use_cache=False).logits
        for state in states:
            state.retain_grad()
        predictions, targets = logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()
        flat = nn.functional.cross_entropy(predictions, targets, reduction="none")
        losses: Any = flat.view(len(ids), -1).mean(dim=1)
        losses.sum().backward()
    for handle in handles:
        handle.remove()
    return {
        "logits": logits.detach(), "states": [s.detach() for s in states],
        "gradients": [s.grad for s in states], "inputs": inputs, "deltas": deltas,
    }  # fmt: skip


def walk(decoder: Decoder, ids: Tensor) -> dict[str, Any]:
    """The same, block by block."""
    states = [decoder.embed(ids)]
    for i in range(len(decoder)):
        with decoder.block(i) as block:
            states.append(block(states[-1]))
    gradients = [decoder.loss_gradient(states[-1], ids) / (ids.shape[1] - 1)]
    inputs, deltas = {}, {}
    for i in reversed(range(len(decoder))):
        hidden = states[i].clone().requires_grad_()
        with decoder.block(i) as block, taps(block.linears) as (seen, grads):
            output: Any = block(hidden)
            output.backward(gradients[0])
        gradients.insert(0, hidden.grad)
        inputs.update(seen)
        deltas.update(grads)
    return {
        "logits": decoder.logits(states[-1], ids), "states": states,
        "gradients": gradients, "inputs": inputs, "deltas": deltas,
    }  # fmt: skip


@pytest.mark.parametrize("tie", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_walk_equals_the_whole_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, architecture: str, tie: bool
) -> None:
    # Seven tokens of three windows at once, so the loss is made in pieces, the last one short.
    monkeypatch.setitem(mixllm.blocks.decoder.LOGITS_AT_ONCE, "cpu", 7 * 3 * VOCAB)
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


@pytest.mark.parametrize("cap", [None, 1.5])
def test_the_gradient_of_a_divergence_is_autograds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cap: float | None
) -> None:
    """Made in pieces, the last one short; with and without a soft cap on logits."""
    monkeypatch.setitem(mixllm.blocks.decoder.LOGITS_AT_ONCE, "cpu", 7 * 3 * VOCAB)
    model = write_tiny(tmp_path, "gemma3_text", final_logit_softcapping=cap)
    decoder, ids = opened(tmp_path), tokens(3)
    hidden, target = torch.randn(2, *ids.shape, model.config.hidden_size).unbind()
    states = hidden.clone().requires_grad_()
    q, p = (decoder.logits(x, ids)[:, :-1].log_softmax(dim=-1) for x in (states, target))
    nn.functional.kl_div(q, p, reduction="none", log_target=True).sum(dim=-1).mean().backward()
    assert states.grad is not None
    assert close(decoder.divergence_gradient(hidden, target, ids), states.grad)


def test_a_weight_put_away_is_gone_while_its_block_is_there(tmp_path: Path) -> None:
    write_tiny(tmp_path, "llama")
    decoder = opened(tmp_path)
    with decoder.block(0) as block:
        linear = next(iter(block.linears.values()))
        weight = weakref.ref(linear.weight.untyped_storage())
        linear.weight = nn.Parameter(linear.weight.to("meta"), requires_grad=False)
        assert weight() is None


@pytest.mark.parametrize("architecture", ["qwen2", "gpt_neox"])
def test_biases_are_loaded(tmp_path: Path, architecture: str) -> None:
    model = write_tiny(tmp_path, architecture)
    decoder = opened(tmp_path)
    with decoder.block(1) as block:
        biased = {name: linear.bias for name, linear in block.linears.items() if linear.bias is not None}
        assert len(biased) == (3 if architecture == "qwen2" else 4)
        for name, bias in biased.items():
            assert torch.equal(bias, model.get_parameter(f"{name}.bias")) and bool(bias.abs().max() > 0)


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
    gpt2 = GPT2Config(vocab_size=50, n_embd=24, n_layer=2, n_head=2)
    auto.from_config(gpt2).save_pretrained(tmp_path / "gpt2")
    with pytest.raises(MixllmError, match=r"no decoder blocks with nn.Linear layers in a gpt2 model"):
        opened(tmp_path / "gpt2")


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


def test_tiny_configs_are_odd() -> None:
    configs = [tiny_config(architecture) for architecture in ARCHITECTURES]
    assert all(c.hidden_size % 128 and c.intermediate_size % 128 for c in configs)
    assert {c.num_hidden_layers for c in configs} == {2, 3}
    assert isinstance(configs[0], type(AutoConfig.for_model("llama")))
