"""csrc/strips.cu compiled for the CPU (emulator/) against the reference."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mixllm.config import PROFILES
from mixllm.kernels import reference
from mixllm.kernels.cuda import CudaLinear, layout, skinny, strips
from mixllm.kernels.cuda.launch import Device
from mixllm.kernels.cuda.strips import StripTile
from tests import shapes
from tests.kernels.cuda.test_emulated import build, quantized
from tests.kernels.cuda.weights import random_weight

# They need a C++20 compiler, as nvcc does.
pytestmark = pytest.mark.nvcc

HALF, BFLOAT, FLOAT = torch.float16, torch.bfloat16, torch.float32
PAPER = {"weight_scale": "group", "activation_group": 128}
# What changes of `fast`, tile, rows of 4 and of 8 bits, inputs, tokens, multiprocessors, type: rings that go
# round and that don't, blocks with and without strips of each kind, missing rows, tokens and slots, X in
# registers.
CASES = [
    ({}, StripTile(8, 2, 4, 40000, head=1), 150, 40, 1100, 5, 3, BFLOAT),
    ({}, StripTile(8, 4, 4, 60000), 30, 9, 9000, 1, 40, HALF),
    ({}, StripTile(16, 2, 2, 50000), 170, 0, 1100, 13, 2, FLOAT),
    ({}, StripTile(16, 2, 4, 60000), 0, 90, 700, 16, 4, BFLOAT),
    ({}, StripTile(8, 8, 16, 90000), 100, 100, 2050, 8, 1, BFLOAT),
    (PAPER, StripTile(8, 2, 4, 60000), 70, 50, 2050, 3, 2, HALF),
    ({"weight_scale": "group"}, StripTile(16, 2, 2, 60000), 90, 40, 1100, 9, 7, BFLOAT),
    ({"activation_group": 256}, StripTile(16, 4, 4, 70000), 70, 20, 1100, 11, 3, FLOAT),
    ({"weight_scale": "row"}, StripTile(8, 4, 4, 60000), 60, 33, 700, 7, 3, BFLOAT),
    ({}, StripTile(16, 2, 4, 50000, 4), 170, 40, 2050, 13, 2, BFLOAT),
    ({}, StripTile(8, 4, 8, 60000, 6), 400, 40, 1100, 5, 3, HALF),
    ({}, StripTile(8, 2, 4, 60000, peers=2), 90, 40, 1100, 5, 2, BFLOAT),
    (PAPER, StripTile(8, 2, 4, 60000, peers=4), 70, 50, 1500, 3, 1, HALF),
    ({}, StripTile(16, 2, 4, 50000, held=6), 170, 40, 1100, 13, 2, BFLOAT),
    ({}, StripTile(8, 4, 8, 60000, peers=2, held=2), 450, 190, 1000, 7, 2, HALF),
    ({}, StripTile(16, 2, 4, 56000, 8, held=4), 170, 40, 2050, 13, 2, BFLOAT),
    (PAPER, StripTile(16, 2, 4, 60000, held=6), 90, 70, 1100, 9, 3, FLOAT),
    (PAPER, StripTile(8, 2, 4, 60000, 4, held=2), 290, 70, 1100, 8, 3, HALF),
    (
        {"weight_scale": "group", "activation_group": 128},
        StripTile(16, 2, 2, 60000, 3),
        70,
        50,
        1500,
        9,
        2,
        HALF,
    ),
]


@pytest.mark.parametrize(("change", "tile", "n4", "n8", "k", "tokens", "multiprocessors", "dtype"), CASES)
def test_as_the_reference(
    change: dict[str, str | int], tile: StripTile, n4: int, n8: int, k: int, tokens: int,
    multiprocessors: int, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    format = PROFILES["fast"].model_copy(update=change)
    weight = random_weight(n4, n8, k, format, k)
    linear = CudaLinear(layout.to_kernel_order(weight, format), format)
    macros = {**tile.macros(), **linear.scales.macros(), "NAMED_BARRIER": 32 * tile.warps}
    kernel = build("strips.cu", "mixed_gemm", macros, tmp_path, 900)
    kernel.blocks_alone = lambda peers, _threads: multiprocessors * peers
    monkeypatch.setattr(skinny, "product", lambda *_: kernel)
    monkeypatch.setattr(skinny, "device", lambda _: Device(0, (9, 0), multiprocessors, 232448))
    x, bias = shapes.inputs(tokens, k, 1).to(dtype), torch.randn(n4 + n8).to(dtype)
    codes, scales, sums, flags = quantized(x, format)
    y = torch.full((tokens, n4 + n8), 7777.0, dtype=dtype)
    given = (codes, scales, sums, flags, linear.tensors, bias, linear.scales, linear.group, tile)
    skinny.gemm_into(y, *given)
    expected = reference.ReferenceLinear(weight, format)(x, bias)
    if linear.scales.key == "whole":
        assert torch.equal(y, expected)
    else:
        error = (y.float() - expected.float()).norm() / expected.float().norm()
        assert error < (1e-6 if dtype == torch.float32 else 1e-4)


# What changes of `fast`, tile, rows of 4 and of 8 bits, inputs, tokens, type.
FRESH = [
    ({}, StripTile(8, 4, 4, 60000), 50, 20, 1000, 1, BFLOAT),
    ({}, StripTile(8, 4, 4, 60000), 20, 9, 700, 3, HALF),
    ({}, StripTile(8, 4, 8, 60000, held=2), 90, 20, 1000, 3, BFLOAT),
    ({}, StripTile(8, 4, 4, 60000), 33, 20, 1000, 4, BFLOAT),
    ({"rotation": "none"}, StripTile(8, 2, 4, 60000), 30, 0, 450, 2, FLOAT),
    ({"weight_scale": "group"}, StripTile(8, 8, 8, 60000), 0, 30, 129, 7, HALF),
]


@pytest.mark.parametrize(("change", "tile", "n4", "n8", "k", "tokens", "dtype"), FRESH)
def test_quantizing_by_itself(
    change: dict[str, str | int], tile: StripTile, n4: int, n8: int, k: int, tokens: int, dtype: torch.dtype,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    format = PROFILES["fast"].model_copy(update=change)
    weight = random_weight(n4, n8, k, format, k)
    linear = CudaLinear(layout.to_kernel_order(weight, format), format)

    def kernel(_source: str, entry: str, macros: tuple[tuple[str, int], ...], *_: int) -> object:
        given = {**dict(macros), "NAMED_BARRIER": 32 * tile.warps}
        return build("strips.cu", entry, given, tmp_path, 900)

    monkeypatch.setattr(strips, "kernel", kernel)
    monkeypatch.setattr(strips, "device", lambda _: Device(0, (9, 0), 2, 232448))
    x, bias = shapes.inputs(tokens, k, 1).to(dtype), torch.randn(n4 + n8).to(dtype)
    if tokens > 2:
        x[1, k // 2], x[2] = torch.nan, 0
    y = torch.full((tokens, n4 + n8), 7777.0, dtype=dtype)
    prologue = tile.prologue(tokens, -(-k // 128))
    assert prologue
    rotate = format.rotation == "hadamard"
    strips.linear_into(y, x, linear.tensors, bias, linear.scales, rotate, tile, prologue)
    expected = reference.ReferenceLinear(weight, format)(x, bias)
    if linear.scales.key == "whole":
        assert torch.equal(y.nan_to_num(-5), expected.nan_to_num(-5))
    else:
        assert torch.allclose(y.nan_to_num(-5), expected.nan_to_num(-5), rtol=1e-3)
