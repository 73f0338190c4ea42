"""What a run does with a result that is there already, and where a result cannot be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mixllm.errors import MixllmError
from mixllm.pipeline import quantize
from tests.resume.conftest import Notes, config, contents
from tests.saying import says


def test_a_finished_run_is_finished(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = quantize(str(root / "model"), out, config(root))
    before, told = contents(out), Notes()
    for resume in ("auto", "require"):
        again = quantize(str(root / "model"), out, config(root), resume=resume, progress=told)  # type: ignore[arg-type]
        assert again == first
    assert told.notes == [f"{out}: finished before; nothing to do"] * 2 and told.stages == {}
    assert contents(out) == before
    for other in ({"bits": 6.0}, {"clip": False}):
        with pytest.raises(MixllmError, match="not empty; choose another directory or give --overwrite"):
            quantize(str(root / "model"), out, config(root, **other))
    with pytest.raises(MixllmError, match="--overwrite"):
        quantize(str(root / "model"), out, config(root), resume="never")
    quantize(str(root / "model"), out, config(root, bits=6), overwrite=True)
    assert json.loads((out / "mixllm/run.json").read_text())["bits"] == 6
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


@pytest.mark.parametrize("harm", ["gone", "cut", "changed"])
def test_a_result_that_was_harmed_since_is_not_finished(root: Path, tmp_path: Path, harm: str) -> None:
    out = tmp_path / "out"
    quantize(str(root / "model"), out, config(root))
    weights, whole = out / "model.safetensors", (out / "model.safetensors").read_bytes()
    if harm == "gone":
        weights.unlink()
    elif harm == "cut":
        weights.write_bytes(whole[:-100])
    else:
        weights.write_bytes(whole.replace(b"codes4", b"codesX", 1))
    with says(f"{out}: was finished, but is not whole any more (.*); give --overwrite to make it anew"):
        quantize(str(root / "model"), out, config(root))
    quantize(str(root / "model"), out, config(root), overwrite=True)
    assert weights.read_bytes() == whole


@pytest.mark.parametrize("name", [".", "..", "/"])
def test_a_place_without_a_name_is_refused(root: Path, name: str) -> None:
    with pytest.raises(MixllmError, match="give the directory by its name"):
        quantize(str(root / "model"), name, config(root), overwrite=True)


def test_a_mount_point_is_refused_before_the_work(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "is_mount", lambda path: path == tmp_path / "out")
    with pytest.raises(MixllmError, match="is a mount point"):
        quantize(str(root / "model"), tmp_path / "out", config(root))
