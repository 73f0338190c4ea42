"""csrc/cluster.cu compiled for the CPU (emulator/) against the reference."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mixllm.config import PROFILES
from mixllm.kernels import reference
from mixllm.kernels.cuda import CudaLinear, layout, skinny, strips
from mixllm.kernels.cuda.clusters import ClusterTile
from mixllm.kernels.cuda.launch import Device
from tests import shapes
from tests.kernels.cuda.test_emulated import build, quantized
from tests.kernels.cuda.test_hopper import tiled
from tests.kernels.cuda.weights import random_weight

# They need a C++20 compiler, as nvcc does.
pytestmark = pytest.mark.nvcc

HALF, BFLOAT, FLOAT = torch.float16, torch.bfloat16, torch.float32
# Tile, rows of 4 and of 8 bits, inputs, tokens, clusters, type: parts of K that are shorter, or nothing;
# rings that go round; missing rows, tokens and slots; blocks of a cluster that own rows by turns.
CASES = [
    (ClusterTile(32, 4, 4, 80000), 300, 90, 1100, 29, 2, BFLOAT),
    (ClusterTile(64, 4, 8, 200000), 150, 40, 2050, 64, 1, HALF),
    (ClusterTile(32, 8, 4, 120000), 600, 130, 1100, 17, 1, BFLOAT),
    (ClusterTile(8, 4, 4, 60000), 0, 200, 700, 5, 2, FLOAT),
    (ClusterTile(16, 4, 4, 90000), 270, 0, 6100, 16, 1, BFLOAT),
]


@pytest.mark.parametrize(("tile", "n4", "n8", "k", "tokens", "clusters", "dtype"), CASES)
def test_as_the_reference(
    tile: ClusterTile, n4: int, n8: int, k: int, tokens: int, clusters: int, dtype: torch.dtype,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    format = PROFILES["fast"]
    weight = random_weight(n4, n8, k, format, k)
    linear = CudaLinear(layout.to_kernel_order(weight, format), format)
    kernel = build("cluster.cu", "mixed_gemm", {**tile.macros(), **linear.scales.macros()}, tmp_path, 900)
    monkeypatch.setattr(skinny, "product", lambda *_: kernel)
    monkeypatch.setattr(skinny, "device", lambda _: Device(0, (9, 0), 132, 232448))
    kernel.blocks_alone = lambda peers, _threads: clusters * peers
    assert tile.stages(tokens, -(-k // 128)) >= 2
    x, bias = shapes.inputs(tokens, k, 1).to(dtype), torch.randn(n4 + n8).to(dtype)
    codes, scales, sums, flags = quantized(x, format)
    y = torch.full((tokens, n4 + n8), 7777.0, dtype=dtype)
    given = (tiled(codes), scales, sums, flags, linear.tensors, bias, linear.scales, linear.group, tile)
    skinny.gemm_into(y, *given)
    assert torch.equal(y, reference.ReferenceLinear(weight, format)(x, bias))


# Tile, rows of 4 and of 8 bits, inputs, tokens, type.
FRESH = [
    (ClusterTile(8, 4, 4, 60000), 150, 40, 2050, 5, BFLOAT),
    (ClusterTile(16, 8, 4, 100000), 300, 90, 1000, 13, HALF),
    (ClusterTile(32, 4, 4, 100000), 70, 20, 450, 29, FLOAT),
]


@pytest.mark.parametrize(("tile", "n4", "n8", "k", "tokens", "dtype"), FRESH)
def test_quantizing_by_itself(
    tile: ClusterTile, n4: int, n8: int, k: int, tokens: int, dtype: torch.dtype, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    format = PROFILES["fast"]
    weight = random_weight(n4, n8, k, format, k)
    linear = CudaLinear(layout.to_kernel_order(weight, format), format)

    def kernel(_source: str, entry: str, macros: tuple[tuple[str, int], ...], *_: int) -> object:
        kernel = build("cluster.cu", entry, {**dict(macros), "NAMED_BARRIER": 256}, tmp_path, 900)
        kernel.blocks_alone = lambda peers, _threads: peers
        return kernel

    monkeypatch.setattr(strips, "kernel", kernel)
    monkeypatch.setattr(strips, "device", lambda _: Device(0, (9, 0), 132, 232448))
    assert tile.stages(tokens, -(-k // 128), True) >= 2
    x, bias = shapes.inputs(tokens, k, 1).to(dtype), torch.randn(n4 + n8).to(dtype)
    x[1, k // 2], x[2] = torch.nan, 0
    y = torch.full((tokens, n4 + n8), 7777.0, dtype=dtype)
    strips.linear_into(y, x, linear.tensors, bias, linear.scales, True, tile)
    expected = reference.ReferenceLinear(weight, format)(x, bias)
    assert torch.equal(y.nan_to_num(-5), expected.nan_to_num(-5))
