"""A LoRA adapter on quantized layers in vLLM: what transformers gives with the same products added."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tests.serving.test_vllm import MOST, SPLIT, errors, job, make
from tests.serving.vllm_process import results
from torch import Tensor, nn

import mixllm
from mixllm.config import PROFILES

pytestmark = pytest.mark.vllm

RANK, ALPHA = 8, 16


def write_adapter(path: Path, model: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    """A random adapter for every quantized layer, as peft stores it; A [RANK, K] and B [N, RANK] by layer."""
    path.mkdir()
    generator = torch.Generator().manual_seed(0)
    pairs = {}
    for name, layer in model.named_modules():
        if isinstance(layer, mixllm.MixLinear):
            a = torch.randn(RANK, layer.in_features, generator=generator) * layer.in_features**-0.5
            b = torch.randn(layer.out_features, RANK, generator=generator) * 0.05
            pairs[name] = a, b
    stored = {}
    for name, (a, b) in pairs.items():
        stored |= {f"base_model.model.{name}.lora_{side}.weight": t for side, t in (("A", a), ("B", b))}
    save_file(stored, path / "adapter_model.safetensors")
    modules = sorted({name.rpartition(".")[2] for name in pairs})
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "target_modules": modules, "bias": "none"}
    (path / "adapter_config.json").write_text(json.dumps(config))
    return pairs


def adapted(model: nn.Module, pairs: dict[str, tuple[Tensor, Tensor]]) -> nn.Module:
    for name, (a, b) in pairs.items():

        def add(_: nn.Module, inputs: tuple[Tensor], y: Tensor, a: Tensor = a, b: Tensor = b) -> Tensor:
            return y + inputs[0] @ a.T @ b.T * (ALPHA / RANK)

        model.get_submodule(name).register_forward_hook(add)
    return model


def test_an_adapter_is_added(tmp_path: Path) -> None:
    path = make(tmp_path / "llama", "llama", PROFILES["fast"], SPLIT)
    model = mixllm.load(path)
    pairs = write_adapter(tmp_path / "adapter", model)
    (answers,) = results([job(path, adapter=str(tmp_path / "adapter"), max_lora_rank=RANK)])
    without = torch.cat(list(errors(answers, model))).mean()
    found = torch.cat(list(errors(answers, adapted(model, pairs))))
    # Few tokens, whose mean an activation that rounds otherwise moves; the adapter moves it far more.
    assert found.max() < MOST and found.mean() < without / 10, (found, without)
