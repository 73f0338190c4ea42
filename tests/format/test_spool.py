"""Layers put aside on disk come back as they were, block by block."""

from pathlib import Path

import pytest
import torch
from tests.format.layers import rounded_layer

from mixllm.config import PROFILES
from mixllm.format.pack import pack
from mixllm.format.spool import Spool


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize(("n", "k", "share8"), [(5, 136, 0.4), (3, 72, 0.0), (2, 257, 1.0)])
def test_a_block_comes_back_as_it_was(tmp_path: Path, profile: str, n: int, k: int, share8: float) -> None:
    layers = {
        f"layers.3.{name}": pack(rounded_layer(PROFILES[profile], n, k, share8, seed=seed), PROFILES[profile])
        for seed, name in enumerate(("q", "up"))
    }
    spool = Spool(tmp_path / "spool")
    spool.append(layers, {"layers.3.q": {"error": 0.5}})
    spool.append({}, {})
    again = Spool(tmp_path / "spool")
    assert len(again) == 2 and again.block(1) == {}
    assert again.notes() == {"layers.3.q": {"error": 0.5}}
    found = again.block(0)
    assert found.keys() == layers.keys()
    for name, layer in layers.items():
        assert found[name].in_features == k
        assert found[name].tensors().keys() == layer.tensors().keys()
        for key, tensor in layer.tensors().items():
            assert found[name].tensors()[key].dtype == tensor.dtype
            assert torch.equal(found[name].tensors()[key], tensor)


def test_blocks_count_only_as_far_as_none_is_missing(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    for _ in range(3):
        spool.append({}, {})
    (tmp_path / "00001.safetensors").unlink()
    assert len(spool) == 1 and len(spool.files()) == 2
