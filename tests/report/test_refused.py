"""What a report or a comparison cannot be made of is said before anything is measured."""

import json
import shutil
from pathlib import Path

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from mixllm.records import MEASURED
from tests.cli.conftest import Tiny
from tests.report.conftest import run


def refuse(*_: object) -> None:
    raise LocalEntryNotFoundError("a paragraph")


def test_mistakes(tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    assert run("report", tmp_path) == 2
    assert run("report", tiny.out, "--model", tiny.model) == 2
    assert run("report", tiny.out, "--also", tiny.out) == 2
    monkeypatch.setattr("mixllm.report.drawing.find_spec", lambda name: None)
    assert run("report", tiny.out) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 4 and all(line.startswith("error: ") for line in errors)
    assert errors[-1].endswith("pip install 'mixllm[report]'")


def test_what_cannot_be_done_is_said_before_anything_is_measured(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for place, message in ((tmp_path, "is a directory"), (tmp_path / "no/page.html", "no such directory")):
        assert run("report", tiny.out, "-o", place) == 2
        assert run("compare", tiny.out, "--model", tiny.model, "--text", tiny.text, "-o", place) == 2
        assert run("plan", tiny.out, "-o", place) == 2
        assert capsys.readouterr().err.count(message) == 3
    how = ["--model", tiny.model, "--text", tiny.text, "--window", 32, "--samples", 2, "--quiet"]
    assert run("report", tiny.out, *how, "-p", "") == 2
    assert "--prompt: '' has no tokens" in capsys.readouterr().err
    assert run("compare", tiny.out, "/no/checkpoint", *how) == 2
    assert "/no/checkpoint: no such directory" in capsys.readouterr().err
    assert not (tiny.out / "mixllm/measured.json").exists()


def test_a_checkpoint_that_is_none_is_named_before_others_are_measured(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mixllm.report.models.measure", lambda *_: pytest.fail("began"))
    (tmp_path / "none").mkdir()
    (tmp_path / "none/config.json").write_text('{"model_type": "no such type"}')
    how = ["--model", tiny.model, "--text", tiny.text, "--window", 32, "--quiet"]
    assert run("compare", tiny.out, tmp_path / "none", *how) == 2
    assert f"{tmp_path / 'none'}: transformers cannot load it" in capsys.readouterr().err
    monkeypatch.setattr("mixllm.source.hub.hf_hub_download", refuse)
    assert run("compare", tiny.out, "someone/none", *how) == 2
    assert "someone/none: no such directory, and the hub did not give it: " in capsys.readouterr().err


def test_figures_that_cannot_be_kept_are_not_measured(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mixllm.report.models.Bench.open", lambda *_: pytest.fail("began"))
    shutil.copytree(tiny.out, tmp_path / "out")
    (tmp_path / "out" / MEASURED).mkdir()
    how = ["--model", tiny.model, "--text", tiny.text, "-o", tmp_path / "page.html"]
    assert run("report", tmp_path / "out", *how) == 2
    assert "measured.json: is a directory" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["inspect", "report"])
def test_a_checkpoint_that_is_not_whole_is_refused(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    out = tmp_path / "out"
    shutil.copytree(tiny.out, out)
    weights = (out / "model.safetensors").read_bytes()
    (out / "model.safetensors").write_bytes(weights[:-1])
    assert run(command, out) == 2
    assert "not a whole safetensors file" in capsys.readouterr().err
    (out / "model.safetensors").write_bytes(weights)
    config = json.loads((out / "config.json").read_text())
    config["quantization_config"]["version"] = 99
    (out / "config.json").write_text(json.dumps(config))
    assert run(command, out) == 2
    assert "version 99 is a newer mixllm's" in capsys.readouterr().err
    del config["quantization_config"]
    (out / "config.json").write_text(json.dumps(config))
    assert run(command, out) == 2
    assert "no quantization_config of mixllm" in capsys.readouterr().err


def test_a_checkpoint_under_another_config_is_not_read_as_a_float_model(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    shutil.copytree(tiny.out, out)
    shutil.copy(tiny.model / "config.json", out)
    how = ["--model", tiny.model, "--text", tiny.text, "--window", 32, "--samples", 2, "--quiet"]
    assert run("compare", out, *how) == 2
    assert "no quantization_config of mixllm" in capsys.readouterr().err
