from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from mixllm.cli.main import run
from mixllm.config import PROFILES, Format
from mixllm.export import dense_weight, export_dense
from mixllm.format.pack import pack
from mixllm.kernels import prepare
from mixllm.source import open_source
from tests.format.layers import packed_layers, rounded_layer, write_quantized


@pytest.mark.parametrize("profile", PROFILES)
def test_the_exported_model_is_the_float_model_with_rounded_weights(tmp_path: Path, profile: str) -> None:
    format = PROFILES[profile]
    checkpoint = write_quantized(tmp_path, "qwen2", format)
    export_dense(checkpoint, tmp_path / "dense", shard_bytes=100_000)
    assert len(list((tmp_path / "dense").glob("*.safetensors"))) > 1
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "dense", dtype=torch.float32)
    expected = AutoModelForCausalLM.from_pretrained(tmp_path / "float")
    for name, weight in packed_layers(open_source(str(tmp_path / "float")), format):
        rounded = dense_weight(weight, format).bfloat16().float()
        expected.get_submodule(name).weight.data = rounded
    ids = torch.arange(3, 23).reshape(2, 10)
    with torch.no_grad():
        assert torch.equal(exported(ids).logits, expected(ids).logits)
    for file in ("tokenizer.json", "chat_template.jinja", "generation_config.json"):
        assert (tmp_path / "dense" / file).read_bytes() == (checkpoint / file).read_bytes()


@pytest.mark.parametrize("rotation", ["none", "hadamard"])
def test_a_dense_weight_multiplies_as_the_layer_does(rotation: str) -> None:
    format = Format(rotation=rotation)
    weight = pack(rounded_layer(format, 9, 328), format)
    x = torch.randn(5, 328, generator=torch.Generator().manual_seed(0))
    y, dense = prepare(weight, format)(x), x @ dense_weight(weight, format).T
    assert (y - dense).norm() < 0.02 * dense.norm()


def test_the_command_says_where_and_refuses_a_full_directory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, out = write_quantized(tmp_path), tmp_path / "dense"
    assert run(["export", str(checkpoint), "--to", "dense", "-o", str(out)]) == 0
    assert str(out) in capsys.readouterr().out
    assert run(["export", str(checkpoint), "-o", str(out)]) == 2
    assert capsys.readouterr().err == f"error: {out}: is not empty; give a directory that is\n"


def test_what_was_not_finished_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint, out = write_quantized(tmp_path / "made"), tmp_path / "dense"

    def interrupt(*_: object) -> None:
        assert any(out.parent.glob(".dense-*/*.safetensors")) and not out.exists()
        raise KeyboardInterrupt

    monkeypatch.setattr("mixllm.export.copy_companions", interrupt)
    with pytest.raises(KeyboardInterrupt):
        export_dense(checkpoint, out)
    assert [path.name for path in tmp_path.iterdir()] == ["made"]
    monkeypatch.undo()
    out.mkdir()  # an empty one is as good as none
    export_dense(checkpoint, out)
    assert (out / "config.json").is_file() and {path.name for path in tmp_path.iterdir()} == {"made", "dense"}
