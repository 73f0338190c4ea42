"""csrc/hopper.cu compiled for the CPU (emulator/) against the reference."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mixllm.config import PROFILES
from mixllm.kernels import reference
from mixllm.kernels.cuda import CudaLinear, hopper, layout
from mixllm.kernels.cuda.hopper import HopperTile
from mixllm.kernels.cuda.launch import Device
from tests import shapes
from tests.kernels.cuda.test_emulated import build, quantized
from tests.kernels.cuda.test_hopper import summed, tiled
from tests.kernels.cuda.weights import random_weight

# They need a C++20 compiler, as nvcc does.
pytestmark = pytest.mark.nvcc

HALF, BFLOAT, FLOAT = torch.float16, torch.bfloat16, torch.float32
# What changes of `fast`, tile, rows of 4 and of 8 bits, inputs, tokens, multiprocessors, type: rings that go
# round and that don't, widths that share no tile, missing rows, tokens and inputs.
CASES = [
    ({}, HopperTile(128, 3, True), 130, 20, 300, 70, 1, BFLOAT),
    ({}, HopperTile(256, 4, True), 70, 20, 640, 270, 2, HALF),
    ({}, HopperTile(256, 4, True), 300, 40, 1100, 300, 5, BFLOAT),
    ({}, HopperTile(128, 3, False), 70, 0, 200, 20, 2, FLOAT),
    # Rows of y on 16 bytes: pieces of eight neighbours.
    ({}, HopperTile(256, 4, False), 230, 42, 300, 201, 2, BFLOAT),
    ({}, HopperTile(64, 3, True), 50, 214, 400, 67, 2, HALF),
    ({}, HopperTile(192, 5, True), 150, 30, 700, 200, 3, BFLOAT),
    ({"weight_scale": "group"}, HopperTile(128, 4, False), 200, 8, 200, 99, 2, BFLOAT),
    ({"weight_scale": "row"}, HopperTile(128, 6, True), 0, 150, 128, 9, 2, BFLOAT),
    ({}, HopperTile(128, 3, True), 264, 0, 900, 150, 7, BFLOAT),
    ({"weight_scale": "group"}, HopperTile(128, 6, True), 130, 20, 700, 70, 3, BFLOAT),
    (
        {"weight_scale": "group", "activation_group": 128},
        HopperTile(128, 3, False),
        70,
        150,
        300,
        131,
        1,
        HALF,
    ),
    ({"activation_group": 256}, HopperTile(128, 3, True), 70, 20, 600, 150, 1, BFLOAT),
    (
        {"weight_scale": "group", "activation_group": 128},
        HopperTile(64, 4, True),
        70,
        60,
        2200,
        150,
        2,
        FLOAT,
    ),
    ({}, HopperTile(64, 4, True), 300, 40, 700, 130, 5, BFLOAT),
    ({"weight_scale": "group"}, HopperTile(64, 3, False), 70, 20, 300, 131, 2, HALF),
    ({"weight_scale": "group"}, HopperTile(128, 3, False), 70, 20, 128, 131, 2, HALF),
    ({"weight_scale": "group"}, HopperTile(128, 3, True), 70, 20, 2200, 150, 3, FLOAT),
    ({"weight_scale": "group"}, HopperTile(256, 3, True), 70, 20, 400, 270, 2, FLOAT),
]


@pytest.mark.parametrize(("change", "tile", "n4", "n8", "k", "tokens", "multiprocessors", "dtype"), CASES)
def test_as_the_reference(
    change: dict[str, str | int], tile: HopperTile, n4: int, n8: int, k: int, tokens: int,
    multiprocessors: int, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    half: bool = True,
) -> None:  # fmt: skip
    """half: group scales are float16, else float32."""
    format = PROFILES["fast"].model_copy(update=change)
    weight = random_weight(n4, n8, k, format, k, half=half)
    linear = CudaLinear(layout.to_kernel_order(weight, format), format)
    macros = {**tile.macros(), **linear.scales.macros()}
    kernel = build("hopper.cu", "mixed_gemm", macros, tmp_path, 900)
    monkeypatch.setattr(hopper, "product", lambda *_: kernel)
    monkeypatch.setattr(hopper, "device", lambda _: Device(0, (9, 0), multiprocessors, 232448))
    x, bias = shapes.inputs(tokens, k, 1).to(dtype), torch.randn(n4 + n8).to(dtype)
    codes, *rest = quantized(x, format)
    whole = linear.scales.key == "whole"
    lines = summed(codes) if linear.scales.unsigned else tiled(codes)
    y = torch.full((tokens, n4 + n8), 7777.0, dtype=dtype)
    kinds = (linear.scales, linear.group, tile)
    hopper.gemm_into(y, lines, *rest, linear.tensors, bias, *kinds)
    assert not rest[-1].any(), "flags are left as they were"
    expected = reference.ReferenceLinear(weight, format)(x, bias)
    if whole:
        assert torch.equal(y, expected)
    else:
        error = (y.float() - expected.float()).norm() / expected.float().norm()
        # Sums that differ by little may round to neighbouring half-precision numbers.
        signed = 1e-4 if dtype != FLOAT else 1e-5
        assert error < (signed if not linear.scales.unsigned else 5e-5 if dtype == FLOAT else 1e-3)


@pytest.mark.parametrize("group", [128, "token"])
def test_float32_scales(group: int | str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change: dict[str, str | int] = {"weight_scale": "group", "activation_group": group}
    case = (change, HopperTile(64, 3, True), 70, 40, 300, 90, 3, FLOAT)
    test_as_the_reference(*case, tmp_path, monkeypatch, half=False)
