import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mixllm.errors import MixllmError
from mixllm.loading import load
from mixllm.nn import MixLinear
from tests.format.layers import write_quantized


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_quantized(tmp_path_factory.mktemp("olmo2"), "olmo2", dtype=torch.bfloat16)


@pytest.fixture
def copy(checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint, tmp_path / "copy"))


def test_it_gives_a_model_ready_to_run(checkpoint: Path) -> None:
    model = load(str(checkpoint), device="cpu")
    assert not model.training and model.dtype == torch.bfloat16
    assert sum(isinstance(module, MixLinear) for module in model.modules()) == 14
    with torch.no_grad():
        assert bool(model(torch.tensor([[5, 6]])).logits.isfinite().all())


def test_a_dtype_can_be_asked_for(checkpoint: Path) -> None:
    assert load(checkpoint, dtype=torch.float32).dtype == torch.float32


def test_a_backend_that_cannot_run_here_says_so(checkpoint: Path) -> None:
    model = load(checkpoint, device="cpu", backend="cuda")
    with pytest.raises(MixllmError, match=r"backend cuda: the weight is on cpu; move the model"):
        model(torch.tensor([[5, 6]]))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"backend": "triton"}, "backend: 'triton' is unknown; give auto, reference, cuda, cpu"),
        ({"device": "tpu"}, "device: tpu is unknown"),
        ({"device": "cuda:77"}, "device: cuda:77: there are"),
    ],
)
def test_a_place_or_backend_that_is_not_there_is_one_line(
    checkpoint: Path, wrong: dict[str, Any], said: str
) -> None:
    with pytest.raises(MixllmError, match=rf"\A{said}[^\n]*\Z"):
        load(checkpoint, **wrong)


def test_the_device_may_be_found(checkpoint: Path) -> None:
    assert load(checkpoint, "auto").device.type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_a_tensor_that_only_the_model_misses_is_named(copy: Path) -> None:
    tensors = load_file(copy / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(MixllmError, match=r"tensor model\.norm\.weight: missing"):
        load(copy)


def test_a_tensor_that_no_model_has_is_named(copy: Path) -> None:
    tensors = {**load_file(copy / "model.safetensors"), "model.other": torch.zeros(1)}
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(MixllmError, match=r"tensor model\.other: no part of this model"):
        load(copy)


@pytest.mark.parametrize(
    "change", [{"model_type": "unheard-of"}, {"hidden_size": "wide"}, {"dtype": "float7"}]
)
def test_a_config_that_transformers_refuses_is_one_line(copy: Path, change: dict[str, str]) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(MixllmError, match=r"config\.json") as error:
        load(copy)
    assert "\n" not in str(error.value)


def test_a_float_model_and_no_model_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(MixllmError, match="quantize the model first"):
        load(checkpoint.parent / "float")
    with pytest.raises(MixllmError, match="no such directory"):
        load(tmp_path / "absent")


def test_nothing_is_allocated_for_a_bad_checkpoint(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "model.layers.1.mlp.down_proj.scales8"
    tensors = load_file(copy / "model.safetensors")
    tensors[name][0] = float("nan")
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})

    def never(*_: object, **__: object) -> None:
        raise AssertionError("weights were loaded before the checkpoint was found bad")

    monkeypatch.setattr("transformers.modeling_utils.PreTrainedModel._load_pretrained_model", never)
    with pytest.raises(MixllmError, match=f"tensor {name}: holds a NaN"):
        load(copy)
