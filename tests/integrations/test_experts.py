"""Mixtures of experts in whatever transformers is installed: loading, saving, generating, exporting."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from tests.format.layers import packed_layers, write_quantized
from tests.models import MIXTURES
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from mixllm.config import PROFILES
from mixllm.errors import MixllmError
from mixllm.experts import Experts, split_experts
from mixllm.export import export_dense
from mixllm.format.config import read_config
from mixllm.integrations import register
from mixllm.loading import load
from mixllm.names import in_model
from mixllm.nn import MixLinear
from mixllm.source import open_source

register()

IDS = torch.arange(3, 23).reshape(2, 10)
AUTO: Any = AutoModelForCausalLM


@pytest.fixture(scope="module", params=MIXTURES)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_quantized(tmp_path_factory.mktemp(request.param), request.param)


def by_hand(float_model: Path) -> nn.Module:
    """The float model with each layer replaced, in memory."""
    source = open_source(str(float_model))
    model: nn.Module = AUTO.from_pretrained(float_model)
    split_experts(model, source)
    for name, weight in packed_layers(source, PROFILES["fast"]):
        model.set_submodule(in_model(name, model), MixLinear.from_weight(weight, PROFILES["fast"]))
    return model


@torch.no_grad()
def test_it_loads_by_either_way(checkpoint: Path) -> None:
    expected = by_hand(checkpoint.parent / "float")(IDS).logits
    for model in (load(checkpoint), AUTO.from_pretrained(checkpoint)):
        layers = [module for module in model.modules() if isinstance(module, Experts)]
        assert len(layers) == 2
        assert torch.equal(model(IDS).logits, expected)
    _, modules = read_config(checkpoint)
    assert sum(isinstance(module, MixLinear) for module in model.modules()) == len(modules)


@pytest.mark.parametrize("shard_size", [10**9, 40_000])
def test_it_is_saved_as_it_was(tmp_path: Path, shard_size: int) -> None:
    for architecture in MIXTURES:
        path = write_quantized(tmp_path / architecture, architecture, shard_bytes=shard_size)
        again = tmp_path / architecture / "again"
        AUTO.from_pretrained(path).save_pretrained(again, max_shard_size=shard_size)
        names = sorted(file.name for file in path.glob("*.safetensors"))
        assert names == sorted(file.name for file in again.glob("*.safetensors"))
        assert (len(names) > 3) == (shard_size < 10**9)
        for name in names:
            assert (path / name).read_bytes() == (again / name).read_bytes(), name
        config, kept = (json.loads((p / "config.json").read_text()) for p in (path, again))
        assert kept["quantization_config"] == config["quantization_config"]


def test_it_generates(checkpoint: Path) -> None:
    model = load(checkpoint)
    prompt = AutoTokenizer.from_pretrained(checkpoint)("the inn", return_tensors="pt")
    texts = [
        model.generate(**prompt, do_sample=False, eos_token_id=None, use_cache=cached)
        for cached in (True, False)
    ]
    assert torch.equal(*texts) and texts[0].shape[1] == prompt["input_ids"].shape[1] + 7


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_dtype_asked_for_leaves_stored_tensors_alone(checkpoint: Path, dtype: torch.dtype) -> None:
    model = AUTO.from_pretrained(checkpoint, dtype=dtype)
    with safe_open(checkpoint / "model.safetensors", framework="pt") as held, torch.no_grad():
        for name in read_config(checkpoint)[1]:
            layer = model.get_submodule(in_model(name, model))
            for key, tensor in layer.stored.tensors().items():
                assert torch.equal(tensor, held.get_tensor(f"{name}.{key}"))
        logits = model(IDS).logits
    assert logits.dtype == dtype and bool(logits.isfinite().all())


@torch.no_grad()
def test_the_dense_export_is_an_ordinary_model(checkpoint: Path, tmp_path: Path) -> None:
    export_dense(checkpoint, tmp_path / "dense")
    dense, info = AUTO.from_pretrained(tmp_path / "dense", dtype=torch.float32, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    expected, found = load(checkpoint)(IDS).logits, dense(IDS).logits
    # Without int8 activations, and rounded to bfloat16.
    assert 0 < float((found - expected).norm() / expected.norm()) < 0.15


ALONE = """
import sys, transformers
for path in sys.argv[1:]:
    try:
        transformers.AutoModelForCausalLM.from_pretrained(path)
    except Exception as error:
        print("refused" if "mismatch" in str(error) else error)
assert "mixllm" not in sys.modules
"""


def test_transformers_alone_refuses_rather_than_load_random_weights(tmp_path: Path) -> None:
    """Mixtures, and a dense model in one file and in several."""
    paths = [write_quantized(tmp_path / name, name) for name in MIXTURES]
    paths += [write_quantized(tmp_path / str(size), shard_bytes=size) for size in (40_000, 10**9)]
    command = [sys.executable, "-c", ALONE, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout.split() == ["refused"] * len(paths), done.stderr
    assert "mixllm" in done.stderr  # it is told whose format it does not know


def test_experts_make_it_version_2(checkpoint: Path, tmp_path: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    assert config["quantization_config"]["version"] == 2
    config["quantization_config"]["version"] = 1
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(MixllmError, match=r"version 1 has no experts, .*\.experts\.0\."):
        read_config(tmp_path)


def test_a_model_without_these_experts_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    for file in checkpoint.iterdir():
        (tmp_path / file.name).symlink_to(file)
    config = json.loads((checkpoint / "config.json").read_text())
    fewer = {key: 2 for key in ("num_local_experts", "num_experts", "n_routed_experts") if key in config}
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps({**config, **fewer}))
    with pytest.raises(MixllmError, match=r"has no layer model\.layers\.0\..*experts\.2"):
        load(tmp_path)
