import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tests.saliences import SHAPES, random_salience
from torch import Tensor

from mixllm.config import PROFILES, Format
from mixllm.errors import MixllmError
from mixllm.plan import ModuleSalience, Salience


def test_what_is_saved_is_loaded_in_model_order(tmp_path: Path):
    shapes = dict(reversed(SHAPES.items()))
    saved = random_salience(shapes, widths=(3, 4, 8), format=PROFILES["paper"])
    saved.save(tmp_path / "salience")
    loaded = Salience.load(tmp_path / "salience")
    assert list(loaded.modules) == list(shapes) and loaded.widths == [3, 4, 8]
    for field in ("score", "error", "tokens", "format", "other_bytes"):
        assert getattr(loaded, field) == getattr(saved, field)
    for name, module in saved.modules.items():
        assert loaded.modules[name].in_features == module.in_features
        assert loaded.modules[name].out_features == shapes[name][0]
        for width, loss in module.loss.items():
            assert torch.equal(loaded.modules[name].loss[width], loss)


def test_the_files_bytes_do_not_depend_on_the_run(tmp_path: Path):
    for name in "ab":
        random_salience().save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_choice_among_some_of_the_widths():
    salience = random_salience(widths=(3, 4, 6, 8))
    some = salience.among((4, 8))
    assert some.widths == [4, 8] and list(some.modules) == list(salience.modules)
    for name, module in some.modules.items():
        assert torch.equal(module.loss[8], salience.modules[name].loss[8])
    with pytest.raises(MixllmError, match="measured for 3, 4, 6, 8 bits, not for 5"):
        salience.among((3, 5, 8))


def broken(path: Path, tensors: dict[str, Tensor], **header: object) -> Path:
    """A salience file of one module "m" [3, 8], with changes."""
    complete = {
        "version": 1,
        "score": "fisher",
        "error": "gptq",
        "tokens": 10,
        "format": {},
        "other_bytes": 0,
        "modules": {"m": 8},
    }
    named = {"m/4": torch.ones(3), "m/8": torch.zeros(3), **tensors}
    metadata = {"mixllm_salience": json.dumps(complete | header)}
    save_file({name: tensor for name, tensor in named.items() if tensor.numel()}, path, metadata=metadata)
    return path


@pytest.mark.parametrize(
    ("tensors", "header", "message"),
    [
        ({"m/4": torch.tensor([1.0, float("nan"), 1.0])}, {}, "m/4: losses must be a vector of finite"),
        ({"m/4": torch.ones(3, dtype=torch.int32)}, {}, "m/4: losses must be"),
        ({"m/4": torch.ones(4)}, {}, "m: the widths differ in their number of output channels"),
        ({"m/4": torch.ones(0), "m/8": torch.ones(0)}, {}, "the modules differ in their widths"),
        ({"n/4": torch.ones(3)}, {}, "n/4: no such module"),
        ({"m/wide": torch.ones(3)}, {}, "m/wide: no such module and width"),
        ({"m/²": torch.ones(3)}, {}, "m/²: no such module and width"),
        ({"m/7": torch.ones(3)}, {}, "m/7: no such module and width"),
        ({"m/4": torch.ones(3).to(torch.float8_e4m3fn)}, {}, "m/4: losses must be"),
        ({}, {"modules": {"m": 8, "n": 8}}, "the modules differ in their widths"),
        ({}, {"modules": {"m": 0}}, "modules.m"),
        ({}, {"modules": {"m": -8}}, "modules.m"),
        ({}, {"version": 2}, "version"),
        ({}, {"score": "guess"}, "score"),
        ({}, {"surplus": 1}, "surplus"),
        ({}, {"modules": {}}, "modules"),
    ],
)
def test_a_wrong_file_is_one_line_that_names_the_file(
    tmp_path: Path, tensors: dict[str, Tensor], header: dict[str, object], message: str
):
    path = broken(tmp_path / "salience", tensors, **header)
    with pytest.raises(MixllmError) as error:
        Salience.load(path)
    assert message in str(error.value) and str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_layer_without_channels(tmp_path: Path):
    Salience({"m": ModuleSalience(8, {4: torch.ones(0)})}, "fisher", "gptq", 1, Format()).save(tmp_path / "a")
    with pytest.raises(MixllmError, match="m/4: holds no output channels"):
        Salience.load(tmp_path / "a")


@pytest.mark.parametrize("metadata", ["{", "[" * 100_000])
def test_metadata_that_is_no_json(tmp_path: Path, metadata: str):
    save_file({"m/4": torch.ones(2)}, tmp_path / "a", metadata={"mixllm_salience": metadata})
    with pytest.raises(MixllmError, match="metadata mixllm_salience is not JSON"):
        Salience.load(tmp_path / "a")


def test_a_file_that_is_no_salience_file(tmp_path: Path):
    path = tmp_path / "other"
    with pytest.raises(MixllmError, match="not a readable salience file"):
        Salience.load(path)
    path.write_bytes(b"plain text, and not a safetensors file")
    with pytest.raises(MixllmError, match="not a readable salience file"):
        Salience.load(path)
    save_file({"weight": torch.ones(2)}, path)
    with pytest.raises(MixllmError, match="not a salience file that mixllm wrote"):
        Salience.load(path)


def test_a_truncated_file(tmp_path: Path):
    path = tmp_path / "salience"
    random_salience().save(path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(MixllmError, match="not a readable salience file"):
        Salience.load(path)


def test_no_layers_means_no_widths():
    assert Salience({}, "fisher", "rtn", 1, Format()).widths == []
    assert ModuleSalience(3, {8: torch.ones(4)}).out_features == 4
