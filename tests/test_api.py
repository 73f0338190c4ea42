"""The package as a library: what it offers, how soon, and that each part says what it is."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch

import mixllm
from mixllm.errors import MixllmError
from tests.models import write_tiny
from tests.saliences import random_salience


def test_every_name_is_offered_before_it_is_loaded() -> None:
    code = (
        "import sys, mixllm; names = dir(mixllm); "
        "slow = [name for name in ('torch', 'transformers', 'pydantic', 'rich') if name in sys.modules]; "
        "print(slow, set(mixllm.__all__) <= set(names), 'quantize' in names)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[] True True\n"


@pytest.mark.parametrize("name", sorted(set(mixllm.__all__) - {"PROFILES"}))
def test_each_public_name_has_a_docstring_and_types(name: str) -> None:
    public = getattr(mixllm, name)
    assert (inspect.getdoc(public) or "").strip()
    if inspect.isfunction(public):
        signature = inspect.signature(public)
        assert signature.return_annotation is not inspect.Signature.empty
        assert all(p.annotation is not inspect.Parameter.empty for p in signature.parameters.values())


def test_type_checkers_are_told_of_the_types() -> None:
    assert files("mixllm").joinpath("py.typed").is_file()


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'quantise'"):
        _ = mixllm.quantise  # type: ignore[attr-defined]


def test_models_and_places_may_be_paths(tmp_path: Path) -> None:
    write_tiny(tmp_path / "model", "llama")
    text = tmp_path / "text.txt"
    text.write_text("the thin man in the inn " * 50)
    config = mixllm.QuantConfig(bits=8, rounding="rtn", calibration=text, samples=2, window=20)
    device, dtype = torch.device("cpu"), torch.float32
    summary = mixllm.quantize(tmp_path / "model", tmp_path / "out", config, device=device, dtype=dtype)
    assert summary.model == str(tmp_path / "model") and summary.report["payload_bits"] == 8
    assert type(mixllm.load(tmp_path / "out").model.layers[0].mlp.up_proj) is mixllm.MixLinear


def test_home_is_meant_by_its_sign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a model is read, and not a directory called ~."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    write_tiny(tmp_path / "model", "llama")
    (tmp_path / "text.txt").write_text("the thin man in the inn " * 50)
    config = mixllm.QuantConfig(bits=8, rounding="rtn", calibration="~/text.txt", samples=1, window=20)
    mixllm.quantize("~/model", "~/out", config)
    mixllm.quantize("~/model", "~/again", config, plan="~/out/mixllm/plan.json")
    for name in ("out", "again"):
        assert (tmp_path / name / "config.json").is_file() and not (tmp_path / "~").exists()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"config": {"bits": 5}}, "config: is a dict; give a mixllm.QuantConfig"),
        ({"resume": "yes"}, "resume: 'yes' is unknown; give auto, require, never"),
        ({"plan": "p", "salience": "s"}, "salience: has no effect on a finished plan"),
        ({"device": "tpu"}, "device: tpu is unknown"),
        ({"dtype": torch.float64}, "dtype: float64 is unknown"),
        ({"shard_size": "lots"}, "shard size: 'lots' is no size"),
    ],
)
def test_what_a_call_can_not_mean_is_one_line(tmp_path: Path, wrong: dict[str, Any], said: str) -> None:
    write_tiny(tmp_path / "model", "llama")
    with pytest.raises(MixllmError, match=rf"\A{said}[^\n]*\Z"):
        mixllm.quantize(tmp_path / "model", tmp_path / "out", **wrong)
    assert not (tmp_path / "out").exists()


def test_files_may_be_named_by_strings(tmp_path: Path) -> None:
    path = f"{tmp_path}/salience.safetensors"
    random_salience({"layers.0.q_proj": (5, 130)}).save(path)
    plan = mixllm.choose(mixllm.Salience.load(path), bits=5.0)
    plan.save(f"{tmp_path}/plan.json")
    assert mixllm.Plan.load(f"{tmp_path}/plan.json").payload_bits == plan.payload_bits


def test_the_page_for_python_names_all_and_its_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (Path(__file__).parents[1] / "docs" / "choosing.md").read_text(encoding="utf-8")
    section = page.partition("## From Python")[2].partition("\n## ")[0]
    assert set(re.findall(r"`(\w+)", section)) >= set(mixllm.__all__) - {"__version__"}
    monkeypatch.chdir(tmp_path)
    write_tiny(tmp_path / "model", "llama")
    (tmp_path / "wiki.train.raw").write_text("the thin man in the inn " * 200)
    config = mixllm.QuantConfig(calibration="wiki.train.raw", samples=4, window=40)
    mixllm.quantize("model", "llama-w4.4", config)
    code = section.partition("```python\n")[2].partition("```")[0]
    for large, small in {
        "meta-llama/Llama-3.2-1B": "model",
        'train.raw")': 'train.raw", samples=4, window=40)',
    }.items():
        assert large in code
        code = code.replace(large, small)
    namespace: dict[str, Any] = {}
    exec(code, namespace)
    assert 4.7 < namespace["summary"].report["payload_bits"] <= 4.8
    assert capsys.readouterr().out and type(namespace["summary"]) is mixllm.Summary
