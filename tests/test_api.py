"""The package as a library: what it offers, how soon, and that each part says what it is."""

from __future__ import annotations

import inspect
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest

import mixllm
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
    config = mixllm.QuantConfig(bits=8, rounding="rtn", calibration=str(text), samples=2, window=20)
    summary = mixllm.quantize(tmp_path / "model", tmp_path / "out", config)
    assert summary.model == str(tmp_path / "model") and summary.report["payload_bits"] == 8
    assert type(mixllm.load(tmp_path / "out").model.layers[0].mlp.up_proj) is mixllm.MixLinear


def test_files_may_be_named_by_strings(tmp_path: Path) -> None:
    path = f"{tmp_path}/salience.safetensors"
    random_salience({"layers.0.q_proj": (5, 130)}).save(path)
    plan = mixllm.choose(mixllm.Salience.load(path), bits=5.0)
    plan.save(f"{tmp_path}/plan.json")
    assert mixllm.Plan.load(f"{tmp_path}/plan.json").payload_bits == plan.payload_bits
