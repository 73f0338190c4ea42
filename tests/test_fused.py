"""Files that hold a layer's experts fused: read, quantized and loaded as those that hold them one by one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

import mixllm
from mixllm.config import QuantConfig
from mixllm.export import export_dense
from mixllm.names import FUSED, in_files
from mixllm.source import open_source
from tests.models import MIXTURES, VOCAB, write_tiny

IDS = torch.arange(3, 23).reshape(2, 10)
AUTO: Any = AutoModelForCausalLM


@pytest.fixture(scope="module", params=MIXTURES)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same model with its experts one by one and fused."""
    paths = tmp_path_factory.mktemp("single"), tmp_path_factory.mktemp("fused")
    for path, published in zip(paths, (True, False), strict=True):
        write_tiny(path, request.param, published=published, dtype=torch.bfloat16)
    held = load_file(paths[1] / "model.safetensors")
    assert sum(name.endswith(FUSED) and held[name].dim() == 3 for name in held) == 2 * 2
    return paths


def test_each_expert_is_read_alone(both: tuple[Path, Path]) -> None:
    single, fused = (open_source(str(path)) for path in both)
    assert sorted(fused.names) == sorted(single.names)
    for name in single.names:
        assert torch.equal(single.tensor(name), fused.tensor(name)), name
        assert single.header(name) == fused.header(name) and single.bytes(name) == fused.bytes(name)
        assert name in fused


def test_only_what_is_taken_is_cut(both: tuple[Path, Path]) -> None:
    source = open_source(str(both[1]))
    stored = load_file(both[1] / "model.safetensors")
    held = {in_files(name, source): tensor for name, tensor in stored.items()}
    assert sorted(source.names_but(())) == sorted(held)
    for name, tensor in held.items():
        assert torch.equal(source.tensor(name), tensor)
    one = next(name for name in source.names if ".layers.1." in name and ".experts.0." in name)
    left = source.names_but({one})
    assert one not in left and len(left) == len(set(left))
    (cut,) = set(held) - set(left)
    assert sum(source.bytes(name) for name in left) == sum(map(_bytes, held.values())) - source.bytes(one)
    assert cut.endswith(FUSED)


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.nbytes


def test_the_checkpoint_is_the_same(both: tuple[Path, Path], tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the thin hen in the inn and then the theater " * 200)
    config = QuantConfig(bits=5.0, calibration=str(text), samples=6, window=48)
    outs = [tmp_path / "single", tmp_path / "fused"]
    for path, out in zip(both, outs, strict=True):
        mixllm.quantize(str(path), out, config)
    single, fused = (load_file(out / "model.safetensors") for out in outs)
    assert sorted(fused) == sorted(single) and any(".experts.2." in name for name in fused)
    for name, tensor in single.items():
        assert torch.equal(fused[name], tensor), name
    with torch.no_grad():
        one, other = (mixllm.load(out, dtype=torch.float32)(IDS).logits for out in outs)
        assert torch.equal(one, other)
        export_dense(outs[1], tmp_path / "dense")
        dense, info = AUTO.from_pretrained(tmp_path / "dense", dtype=torch.float32, output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"]
        assert 0 < float((dense(IDS).logits - one).norm() / one.norm()) < 0.2


def test_experts_that_look_otherwise_stay_fused(tmp_path: Path) -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 32, "num_hidden_layers": 1, "vocab_size": VOCAB}
    config = AutoConfig.for_model("gpt_oss", num_local_experts=3, **sizes)
    AUTO.from_config(config).save_pretrained(tmp_path / "gpt_oss")
    names = open_source(str(tmp_path / "gpt_oss")).names
    assert sum(name.endswith(FUSED) for name in names) == 2
    # Qwen3-MoE's with a third tensor, and transposed.
    write_tiny(tmp_path / "qwen3_moe", "qwen3_moe", published=False)
    file = tmp_path / "qwen3_moe" / "model.safetensors"
    held = load_file(file)
    first, second = (f"model.layers.{i}.mlp.experts" for i in range(2))
    held[f"{first}.down_proj_bias"] = torch.zeros(5, 72)
    for leaf in FUSED:
        held[f"{second}.{leaf}"] = held[f"{second}.{leaf}"].mT.contiguous()
    save_file(held, file, metadata={"format": "pt"})
    assert sorted(open_source(str(file.parent)).names) == sorted(held)
