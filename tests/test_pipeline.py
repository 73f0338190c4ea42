"""The whole job on a tiny model: what it leaves, what it reuses and what it refuses."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mixllm.config import PROFILES, QuantConfig
from mixllm.errors import MixllmError
from mixllm.format import checkpoint
from mixllm.format.early import Early
from mixllm.loading import load
from mixllm.pipeline import quantize
from mixllm.plan import Plan
from mixllm.ranks import Ranks
from tests.models import write_tiny

TEXT = "The quick brown fox jumps over the lazy dog, and then the other way round. " * 60


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    write_tiny(path, "llama", tie=True)
    (path.parent / "text.txt").write_text(TEXT)
    return path


def config(model: Path, **fields: object) -> QuantConfig:
    text = str(model.parent / "text.txt")
    return QuantConfig.model_validate(
        {"calibration": text, "samples": 6, "window": 40, "bits": 5.0, **fields}
    )


def contents(directory: Path) -> dict[str, bytes]:
    """All but what tells how and from what it was made."""
    others = ("summary.json", "log.jsonl", "run.json")
    files = [f for f in directory.rglob("*") if f.is_file() and f.name not in others]
    return {str(f.relative_to(directory)): f.read_bytes() for f in files}


@pytest.mark.parametrize("profile", PROFILES)
def test_makes_a_model_that_is_close_to_the_float_one(model: Path, tmp_path: Path, profile: str) -> None:
    from transformers import AutoModelForCausalLM

    summary = quantize(str(model), tmp_path / "out", config(model, format=PROFILES[profile]))
    ids = torch.randint(4, 200, (1, 30), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(model)(ids).logits
        found = load(tmp_path / "out")(ids).logits
    assert 0.001 < float((found - expected).norm() / expected.norm()) < 0.25
    assert 4.98 < summary.report["payload_bits"] <= 5.0


def test_size_is_what_the_plan_predicted(model: Path, tmp_path: Path) -> None:
    summary = quantize(str(model), tmp_path / "out", config(model))
    size = sum(f.stat().st_size for f in (tmp_path / "out").glob("*.safetensors"))
    assert abs(size / summary.report["checkpoint_bytes"] - 1) < 0.01
    kept = json.loads((tmp_path / "out/mixllm/summary.json").read_text())
    assert kept["report"]["checkpoint_bytes"] == summary.report["checkpoint_bytes"]


@pytest.mark.parametrize(("size", "shards"), [("1GB", 1), ("60KB", 3)])
def test_the_first_shard_is_filled_while_blocks_are_rounded(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: str, shards: int
) -> None:
    """At the end only the others are written; the bytes are those of shards written whole."""
    saved: list[str] = []

    def save(path: Path, tensors: dict[str, torch.Tensor]) -> None:
        saved.append(path.name)
        of_shards(path, tensors)

    of_shards = checkpoint.save
    monkeypatch.setattr(checkpoint, "save", save)
    quantize(str(model), tmp_path / "early/out", config(model), shard_size=size)
    found = sorted(path.name for path in (tmp_path / "early/out").glob("*.safetensors"))
    assert len(found) == shards and saved == found[1:]
    monkeypatch.setattr(Early, "finish", lambda *_: False)
    quantize(str(model), tmp_path / "late/out", config(model), shard_size=size)
    assert saved == [*found[1:], *found]
    assert contents(tmp_path / "early/out") == contents(tmp_path / "late/out")


def test_runs_again_to_the_same_bytes_from_its_own_plan_and_salience(model: Path, tmp_path: Path) -> None:
    quantize(str(model), tmp_path / "first/out", config(model))
    records = tmp_path / "first/out/mixllm"
    quantize(str(model), tmp_path / "planned/out", config(model), plan=records / "plan.json")
    quantize(str(model), tmp_path / "scored/out", config(model), salience=records / "salience.safetensors")
    first = contents(tmp_path / "first/out")
    assert contents(tmp_path / "scored/out") == first
    del first["mixllm/salience.safetensors"]
    assert contents(tmp_path / "planned/out") == first


def test_tuning_sees_a_text_of_its_own(model: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text("Pack my box with five dozen jugs of quick black wax and tar. " * 80)
    given = {"tune": 2, "tune_text": str(other), "tune_samples": 9}
    quantize(str(model), tmp_path / "own/out", config(model, tune=2))
    quantize(str(model), tmp_path / "other/out", config(model, **given))
    own, tuned = (load_file(tmp_path / of / "out/model.safetensors") for of in ("own", "other"))
    codes = [name for name, tensor in own.items() if not tensor.is_floating_point()]
    assert codes and all(torch.equal(own[name], tuned[name]) for name in codes)
    assert any(not torch.equal(own[name], tuned[name]) for name in own)
    with pytest.raises(MixllmError, match=r"other\.txt: the text has \d+ tokens, but 40000 are needed"):
        quantize(str(model), tmp_path / "no", config(model, **{**given, "tune_samples": 1000}))


def test_uniform_widths_need_no_salience(model: Path, tmp_path: Path) -> None:
    quantize(str(model), tmp_path / "out", config(model, bits=8))
    assert not (tmp_path / "out/mixllm/salience.safetensors").exists()
    plan = Plan.load(tmp_path / "out/mixllm/plan.json")
    assert plan.payload_bits == 8


def test_a_directory_in_use_is_left_alone_unless_told(model: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/notes.txt").write_text("mine")
    with pytest.raises(MixllmError, match="--overwrite"):
        quantize(str(model), tmp_path / "out", config(model, bits=4))
    assert (tmp_path / "out/notes.txt").read_text() == "mine"
    quantize(str(model), tmp_path / "out", config(model, bits=4), overwrite=True)
    assert not (tmp_path / "out/notes.txt").exists() and (tmp_path / "out/config.json").exists()


def test_a_failed_run_leaves_nothing_that_looks_finished(model: Path, tmp_path: Path) -> None:
    with pytest.raises(MixllmError, match=r"text\.txt: the text has \d+ tokens, but 40000 are needed"):
        quantize(str(model), tmp_path / "out", config(model, samples=1000))
    assert list(tmp_path.iterdir()) == []


def test_a_plan_of_another_model_is_refused(model: Path, tmp_path: Path) -> None:
    write_tiny(tmp_path / "other", "qwen2")
    quantize(str(tmp_path / "other"), tmp_path / "out", config(model, bits=4))
    with pytest.raises(MixllmError, match=r"plan\.json: .*made for another model"):
        quantize(str(model), tmp_path / "out2", config(model), plan=tmp_path / "out/mixllm/plan.json")
    assert not (tmp_path / "out2").exists()


def test_tuning_with_several_processes_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mixllm.pipeline.joined", lambda _: nullcontext(Ranks(0, 2)))
    with pytest.raises(MixllmError, match="tune: runs in one process"):
        quantize(str(tmp_path / "no such model"), tmp_path / "out", QuantConfig(tune=1))
