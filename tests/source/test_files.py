"""A model's safetensors files: which hold what, and what broken ones say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.models import write_tiny
from tests.saying import says

from mixllm.index import INDEX
from mixllm.source import Source


@pytest.mark.parametrize("keep", [0, 4, 900, -1])
def test_truncated_file(tmp_path: Path, keep: int) -> None:
    write_tiny(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with says("model.safetensors: damaged or cut short"):
        Source(tmp_path)


def test_missing_shard(tmp_path: Path) -> None:
    write_tiny(tmp_path, shard_size="60KB")
    shard = sorted(tmp_path.glob("model-*.safetensors"))[1]
    shard.unlink()
    with says(f"{shard.name}: shard is missing"):
        Source(tmp_path)


def test_index_and_shards_disagree(tmp_path: Path) -> None:
    write_tiny(tmp_path, shard_size="60KB")
    index = tmp_path / INDEX
    content = json.loads(index.read_text())
    content["weight_map"]["model.extra"] = next(iter(content["weight_map"].values()))
    index.write_text(json.dumps(content))
    with says("tensor model.extra of model.safetensors.index.json is missing"):
        Source(tmp_path)


def test_weights_that_may_not_be_read_are_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tiny(tmp_path)
    monkeypatch.setattr("os.access", lambda path, mode: Path(path).name != "model.safetensors")
    with says("model.safetensors: not yours to read"):
        Source(tmp_path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("[]", "holds a JSON list"),
        ("[" * 100_000, "not valid JSON"),
        ("{}", "no weight_map"),
        ('{"weight_map": {"a": 3}}', "no weight_map in it that gives each tensor a file"),
        (
            '{"weight_map": {"a": "../a.safetensors"}}',
            "'../a.safetensors' is not the name of a file",
        ),
        ('{"weight_map": {"a": "/a.safetensors"}}', "'/a.safetensors' is not the name of a file beside it"),
    ],
)
def test_an_index_that_is_none_or_points_elsewhere(tmp_path: Path, content: str, reason: str) -> None:
    write_tiny(tmp_path, shard_size="60KB")
    (tmp_path / INDEX).write_text(content)
    with says(f"{INDEX}: {reason}"):
        Source(tmp_path)


def test_two_shards_that_hold_one_tensor(tmp_path: Path) -> None:
    """One of them would be taken, without a word, and another tool would take the other."""
    write_tiny(tmp_path, shard_size="60KB")
    first, second = sorted(tmp_path.glob("model-*.safetensors"))[:2]
    name = next(iter(load_file(first)))
    save_file({**load_file(second), name: torch.ones(3)}, second, metadata={"format": "pt"})
    with says(f"{second.name}: tensor {name}: another file holds it too"):
        Source(tmp_path)
