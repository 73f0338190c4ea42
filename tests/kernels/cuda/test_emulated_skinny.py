"""csrc/skinny.cu compiled for the CPU (emulator/) against the reference."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mixllm.config import PROFILES
from mixllm.kernels import reference
from mixllm.kernels.cuda import CudaLinear, layout, skinny
from mixllm.kernels.cuda.launch import Device
from mixllm.kernels.cuda.skinny import SkinnyTile
from tests import shapes
from tests.kernels.cuda.test_emulated import build, quantized
from tests.kernels.cuda.test_hopper import tiled
from tests.kernels.cuda.weights import random_weight

# They need a C++20 compiler, as nvcc does.
pytestmark = pytest.mark.nvcc

HALF, BFLOAT, FLOAT = torch.float16, torch.bfloat16, torch.float32
# What changes of `fast`, tile, rows of 4 and of 8 bits, inputs, tokens, multiprocessors, type: rings that go
# round and that don't, cut tiles and whole ones, missing rows, tokens and slots.
PAPER = {"weight_scale": "group", "activation_group": 128}
CASES = [
    ({}, SkinnyTile(64, 8, 2, 1, 2, 1, 1), 150, 40, 1100, 5, 3, BFLOAT),
    ({}, SkinnyTile(128, 16, 2, 1, 3, 1, 1), 150, 40, 2050, 13, 5, HALF),
    ({}, SkinnyTile(64, 32, 4, 2, 2, 2, 1), 300, 70, 900, 32, 1, FLOAT),
    ({}, SkinnyTile(64, 8, 4, 1, 2, 1, 1), 30, 9, 9000, 3, 40, BFLOAT),
    ({}, SkinnyTile(64, 16, 4, 1, 4, 2, 2), 170, 60, 1100, 13, 3, HALF),
    ({}, SkinnyTile(128, 64, 2, 1, 4, 1, 1), 10, 0, 40, 40, 9, BFLOAT),
    ({}, SkinnyTile(64, 128, 2, 1, 5, 1, 1), 200, 40, 1100, 100, 7, BFLOAT),
    ({"weight_scale": "row"}, SkinnyTile(64, 128, 2, 1, 2, 1, 1), 0, 90, 700, 70, 3, BFLOAT),
    ({"weight_scale": "group"}, SkinnyTile(64, 16, 2, 1, 2, 1, 1), 90, 40, 1100, 9, 7, BFLOAT),
    (
        {"weight_scale": "group", "activation_group": 128},
        SkinnyTile(64, 8, 4, 2, 2, 1, 1),
        70,
        50,
        2050,
        3,
        2,
        HALF,
    ),
    ({"activation_group": 256}, SkinnyTile(128, 32, 2, 1, 3, 1, 1), 70, 20, 1100, 30, 3, FLOAT),
]


@pytest.mark.parametrize(("change", "tile", "n4", "n8", "k", "tokens", "multiprocessors", "dtype"), CASES)
def test_as_the_reference(
    change: dict[str, str | int], tile: SkinnyTile, n4: int, n8: int, k: int, tokens: int,
    multiprocessors: int, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    format = PROFILES["fast"].model_copy(update=change)
    weight = random_weight(n4, n8, k, format, k)
    linear = CudaLinear(layout.to_kernel_order(weight, format), format)
    macros = {**tile.macros(), **linear.scales.macros(), "NAMED_BARRIER": tile.threads - 32}
    kernel = build("skinny.cu", "mixed_gemm", macros, tmp_path, 900)
    monkeypatch.setattr(skinny, "product", lambda *_: kernel)
    monkeypatch.setattr(skinny, "device", lambda _: Device(0, (9, 0), multiprocessors, 232448))
    x, bias = shapes.inputs(tokens, k, 1).to(dtype), torch.randn(n4 + n8).to(dtype)
    codes, scales, sums, flags = quantized(x, format)
    y = torch.full((tokens, n4 + n8), 7777.0, dtype=dtype)
    given = (tiled(codes), scales, sums, flags, linear.tensors, bias, linear.scales, linear.group, tile)
    skinny.gemm_into(y, *given)
    expected = reference.ReferenceLinear(weight, format)(x, bias)
    assert not flags.any(), "flags are left as they were"
    if linear.scales.key == "whole":
        assert torch.equal(y, expected)
    else:
        error = (y.float() - expected.float()).norm() / expected.float().norm()
        assert error < (1e-6 if dtype == torch.float32 else 1e-4)
