import json
from pathlib import Path
from typing import Any

import pytest
from tests.shapes import FORMATS

from mixllm.config import PROFILES, Format
from mixllm.errors import MixllmError
from mixllm.format.config import QuantizedModule, quantization_config, read_config

MODULES = {"a.0.q": QuantizedModule(200, 9, {4: 7, 8: 2}), "a.1.q": QuantizedModule(1, 1, {4: 0, 8: 1})}


def write(path: Path, **changes: Any) -> Path:
    """A config.json in `path`; a change to None removes the field."""
    fields = {**quantization_config(PROFILES["fast"], MODULES), **changes}
    fields = {name: value for name, value in fields.items() if value is not None}
    (path / "config.json").write_text(json.dumps({"quantization_config": fields}))
    return path


@pytest.mark.parametrize("format", FORMATS)
def test_a_config_comes_back(tmp_path: Path, format: Format) -> None:
    data = {"model_type": "llama", "quantization_config": quantization_config(format, MODULES)}
    (tmp_path / "config.json").write_text(json.dumps(data))
    assert read_config(tmp_path) == (format, MODULES)


@pytest.mark.parametrize(
    ("name", "rows", "version"),
    [
        ("a.0.q", {4: 7, 8: 2}, 1),
        ("a.0.experts.1.w1", {4: 7, 8: 2}, 2),
        ("a.0.q", {4: 7, 6: 1, 8: 1}, 3),
        ("a.0.experts.1.w1", {3: 7, 4: 0, 5: 1, 8: 1}, 3),
    ],
)
def test_the_oldest_version_that_has_all_there_is(
    tmp_path: Path, name: str, rows: dict[int, int], version: int
) -> None:
    modules = {**MODULES, name: QuantizedModule(200, 9, rows)}
    data = quantization_config(PROFILES["fast"], modules)
    assert data["version"] == version
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": data}))
    assert read_config(tmp_path) == (PROFILES["fast"], modules)


def module(**changes: Any) -> dict[str, Any]:
    return {"m": {"in_features": 8, "out_features": 3, "rows": {"4": 1, "8": 2}} | changes}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"quant_method": "gptq"}, "no quantization_config of mixllm"),
        ({"version": 4}, "newer mixllm"),
        ({"version": 0}, "version"),
        ({"version": "1"}, "version"),
        ({"version": None}, "version is missing"),
        ({"rotation": None}, "rotation is missing"),
        ({"group_size": 64}, "group_size"),
        ({"rotation": "walsh"}, "rotation"),
        ({"weight_scale": "tensor"}, "weight_scale"),
        ({"activation_group": 96}, "activation_group"),
        ({"extra": 1}, "extra"),
        ({"modules": None}, "modules is missing"),
        ({"modules": {}}, "names no quantized module"),
        ({"modules": []}, "names no quantized module"),
        ({"modules": {"m": 3}}, "modules: m"),
        ({"modules": module(in_features=0)}, "in_features"),
        ({"modules": module(in_features=132_001)}, "in_features"),
        ({"modules": module(in_features=True)}, "in_features"),
        ({"modules": module(in_features=8.0)}, "in_features"),
        ({"modules": module(out_features=4)}, "don't make 4"),
        ({"modules": module(rows={"4": 3})}, "rows.8"),
        ({"modules": module(rows={"4": 4, "8": -1})}, "rows.8"),
        ({"modules": module(rows={"4": 1, "6": 1, "8": 1})}, "version 1 has no 6-bit rows"),
        ({"version": 2, "modules": module(rows={"3": 1, "4": 1, "8": 1})}, "version 2 has no 3-bit rows"),
        ({"version": 3, "modules": module(rows={"4": 1, "7": 1, "8": 1})}, "rows.7"),
        ({"version": 3, "modules": module(rows={"4": 1, "6": 0, "8": 2})}, "rows.6"),
        ({"version": 3, "modules": module(rows={"3": 1, "8": 2})}, "rows.4"),
        ({"version": 3, "modules": module(rows={"3": 1, "4": 1, "8": 2})}, "don't make 3"),
    ],
)
def test_each_lie_of_a_config_is_named(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(MixllmError) as error:
        read_config(write(tmp_path, **changes))
    assert reason in str(error.value) and "config.json" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "reason"), [("{", "JSON"), ("{}", "no quantization_config"), ("[]", "list")]
)
def test_a_broken_file_is_named(tmp_path: Path, content: str, reason: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(MixllmError, match=reason):
        read_config(tmp_path)


def test_no_directory_and_no_config_are_named(tmp_path: Path) -> None:
    with pytest.raises(MixllmError, match="no such directory"):
        read_config(tmp_path / "absent")
    with pytest.raises(MixllmError, match="not a finished checkpoint"):
        read_config(tmp_path)
