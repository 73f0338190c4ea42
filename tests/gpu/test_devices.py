"""device_map on GPUs: a model split over two, and blocks that stay in the host's memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import mixllm  # registers with transformers
from mixllm.config import PROFILES, QuantConfig
from mixllm.pipeline import quantize
from tests.format.layers import write_quantized
from tests.models import write_tiny

pytestmark = pytest.mark.gpu

REST = ("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head")
SIZES = {"hidden_size": 192, "intermediate_size": 392, "num_hidden_layers": 4}


def loaded(path: Path, places: Any, **more: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16, device_map=places, **more)


def placed(*blocks: int | str, rest: int = 0) -> dict[str, int | str]:
    return dict.fromkeys(REST, rest) | {f"model.layers.{i}": place for i, place in enumerate(blocks)}


@torch.no_grad()
def assert_same(model: Any, whole: Any) -> None:
    for length in (1, 7, 150):
        ids = torch.randint(4, 200, (2, length), device="cuda:0")
        assert torch.equal(model(ids).logits.to("cuda:0"), whole(ids).logits)
    answers = [
        m.generate(ids[:1, :9], max_new_tokens=6, do_sample=False, pad_token_id=0) for m in (model, whole)
    ]
    assert torch.equal(*answers)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("architecture", ["llama", "mixtral"])
def test_two_gpus_give_the_same(tmp_path: Path, architecture: str) -> None:
    path = write_quantized(tmp_path, architecture, **SIZES)
    whole = loaded(path, {"": 0})
    assert_same(loaded(path, placed(0, 1, 1, 0)), whole)
    auto = loaded(path, "auto", max_memory={0: 1 << 20, 1: 1 << 30})
    assert set(auto.hf_device_map.values()) == {0, 1}
    assert_same(auto, whole)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("profile", PROFILES)
def test_a_gpu_that_is_not_the_first_quantizes_to_the_same(tmp_path: Path, profile: str) -> None:
    write_tiny(tmp_path / "model", "llama", **SIZES)
    (tmp_path / "text.txt").write_text("The quick brown fox jumps over the lazy dog, and then back. " * 60)
    how = {"calibration": str(tmp_path / "text.txt"), "samples": 6, "window": 40, "sweeps": 1, "tune": 1}
    config = QuantConfig.model_validate({"format": PROFILES[profile], **how})
    found = []
    for device in ("cuda:0", "cuda:1"):
        out = tmp_path / device / "out"
        quantize(str(tmp_path / "model"), out, config, device=device, dtype="float32")
        found.append(load_file(out / "model.safetensors"))
    assert found[0].keys() == found[1].keys()
    # Gradients may be added in any order, so a row's width may fall the other way.
    names = [n for n in found[0] if ".codes" in n and found[0][n].shape == found[1][n].shape]
    assert len(names) > 40
    differ = sum(int((found[0][name] != found[1][name]).sum()) for name in names)
    assert differ <= 0.02 * sum(found[0][name].numel() for name in names)


@pytest.mark.parametrize("buffers", [False, True])
def test_blocks_in_the_hosts_memory_give_the_same(tmp_path: Path, buffers: bool) -> None:
    path = write_quantized(tmp_path, "llama", **SIZES)
    whole = loaded(path, {"": 0})
    model = loaded(path, placed(0, "cpu", "cpu", 0), offload_buffers=buffers)
    assert_same(model, whole)
    for block in model.model.layers[1:3]:
        for layer in (part for part in block.modules() if isinstance(part, mixllm.MixLinear)):
            # Without offload_buffers a mixed layer's tensors stay on the GPU; with it nothing of it does.
            assert {buffer.device.type for buffer in layer.buffers()} == {"meta" if buffers else "cuda"}
            assert (layer._kernel is None) == buffers
