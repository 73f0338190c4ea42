"""Models published in block-scaled 8-bit floats are read as the bfloat16 models that they stand for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from mixllm.config import QuantConfig
from mixllm.errors import MixllmError
from mixllm.pipeline import quantize
from mixllm.placement import load_float
from mixllm.source import Source, open_source
from mixllm.source.fp8 import block_size, dequantize
from tests.models import write_tiny

FP8: dict[str, Any] = {
    "quant_method": "fp8",
    "fmt": "e4m3",
    "activation_scheme": "dynamic",
    "weight_block_size": [128, 128],
}


def naive(weight: Tensor, scale: Tensor, rows: int, columns: int) -> Tensor:
    made = torch.empty(weight.shape)
    for n in range(weight.shape[0]):
        for k in range(weight.shape[1]):
            made[n, k] = weight[n, k].float() * scale[n // rows, k // columns].float()
    return made.bfloat16()


@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 8), st.integers(1, 8), st.integers(0, 9))
def test_each_block_is_multiplied_by_its_scale(n: int, k: int, rows: int, columns: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(n, k, generator=generator).to(torch.float8_e4m3fn)
    scale = torch.rand(-(-n // rows), -(-k // columns), generator=generator) + 0.1
    assert torch.equal(dequantize(weight, scale, (rows, columns), "w"), naive(weight, scale, rows, columns))


def pack(weight: Tensor) -> tuple[Tensor, Tensor]:
    n, k = weight.shape
    scale = torch.empty(-(-n // 128), -(-k // 128))
    packed = torch.empty(n, k, dtype=torch.float8_e4m3fn)
    for i in range(scale.shape[0]):
        for j in range(scale.shape[1]):
            part = slice(128 * i, 128 * i + 128), slice(128 * j, 128 * j + 128)
            scale[i, j] = weight[part].abs().max() / 448
            packed[part] = (weight[part] / scale[i, j]).to(torch.float8_e4m3fn)
    return packed, scale


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """A model in 8-bit floats, and the same as bfloat16."""
    packed, plain = tmp_path / "packed", tmp_path / "plain"
    for path in (packed, plain):
        write_tiny(path, "llama", dtype=torch.bfloat16, hidden_size=144, intermediate_size=200)
    stored, made = {}, {}
    for name, tensor in load_file(packed / "model.safetensors").items():
        made[name] = stored[name] = tensor
        if name.endswith("_proj.weight"):
            stored[name], scale = pack(tensor.float())
            stored[f"{name}_scale_inv"] = scale
            n, k = tensor.shape
            spread = scale.repeat_interleave(128, 0)[:n].repeat_interleave(128, 1)[:, :k]
            made[name] = (stored[name].float() * spread).bfloat16()
    save_file(stored, packed / "model.safetensors", metadata={"format": "pt"})
    save_file(made, plain / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((packed / "config.json").read_text())
    (packed / "config.json").write_text(json.dumps({**config, "quantization_config": FP8}))
    return packed, plain


def test_the_source_is_that_of_the_bfloat16_model(pair: tuple[Path, Path]) -> None:
    packed, plain = (open_source(str(path)) for path in pair)
    assert set(packed.names) == set(plain.names)
    for name in plain.names:
        assert torch.equal(packed.tensor(name), plain.tensor(name))
        assert packed.header(name) == plain.header(name) and packed.bytes(name) == plain.bytes(name)
    assert "model.layers.0.mlp.up_proj.weight_scale_inv" not in packed
    assert not hasattr(packed.config, "quantization_config")


def test_the_checkpoint_is_that_of_the_bfloat16_model(pair: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 40)
    config = QuantConfig(calibration=str(tmp_path / "text.txt"), samples=3, window=40, bits=5)
    for path in pair:
        quantize(str(path), tmp_path / path.name / "out", config)
    packed, plain = (tmp_path / path.name / "out" for path in pair)
    assert (packed / "model.safetensors").read_bytes() == (plain / "model.safetensors").read_bytes()
    configs = [json.loads((path / "config.json").read_text()) for path in (packed, plain)]
    assert configs[0] == configs[1]


def test_the_float_model_to_compare_with_is_the_bfloat16_model(pair: tuple[Path, Path]) -> None:
    ids = torch.arange(4, 30)[None]
    logits = [
        load_float(open_source(str(path)), torch.device("cpu"), torch.float32)(ids).logits for path in pair
    ]
    torch.testing.assert_close(*logits, rtol=0, atol=0.02)


@pytest.mark.parametrize(
    ("scale", "said"),
    [
        (torch.ones(1, 1), r"weight_scale_inv is \[1, 1\] of torch.float32, not \[2, 2\] floats"),
        (torch.ones(2, 2, dtype=torch.int32), "not"),
        (torch.full((2, 2), torch.nan), "holds NaN or infinite values"),
    ],
)
def test_scales_that_do_not_fit_are_a_one_line_error(
    pair: tuple[Path, Path], scale: Tensor, said: str
) -> None:
    file, name = pair[0] / "model.safetensors", "model.layers.0.mlp.up_proj.weight"
    save_file({**load_file(file), f"{name}_scale_inv": scale}, file, metadata={"format": "pt"})
    with pytest.raises(MixllmError, match=said) as error:
        Source(pair[0]).tensor(name)
    assert name in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "other",
    [None, {}, {"quant_method": "gptq"}, {"quant_method": "fp8"}, {**FP8, "weight_block_size": [128]}, "fp8"],
)
def test_other_kinds_are_not_taken_for_it(other: Any) -> None:
    assert block_size(other) is None
    assert block_size({**FP8, "weight_block_size": [64, 32]}) == (64, 32)
