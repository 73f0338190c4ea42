"""The path for few tokens on Hopper, bit for bit against the reference; needs an sm_90 GPU."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mixllm.config import PROFILES, Format
from mixllm.kernels import reference
from mixllm.kernels.cuda import CudaLinear, layout, ops, quantizing, skinny
from tests import shapes
from tests.gpu.guarded import assert_as, run_guarded
from tests.gpu.test_cuda import DTYPES, true_division
from tests.kernels.cuda.weights import random_weight

HOPPER = torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0)
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not HOPPER, reason="needs an sm_90 GPU")]
__all__ = ["true_division"]  # a fixture that is used by being here

FAST = PROFILES["fast"]


def run(linear: CudaLinear, x: Tensor, bias: Tensor | None, tile: skinny.SkinnyTile) -> Tensor:
    """As linear(x, bias) with this tile, under guard."""
    quantized = ops.quantize(x, linear.format.rotation == "hadamard", linear.group, True)

    def product(y: Tensor) -> None:
        # Twice with the same flags, which a product must leave as they were.
        skinny.gemm_into(y, *quantized, linear.tensors, bias, linear.scales, linear.group, tile)
        assert bool((quantized[3] == 0).all()), "flags are left as they were"

    return run_guarded(x, linear.weight.out_features, product)


@settings(deadline=None, max_examples=200)
@given(
    format=st.sampled_from(shapes.FORMATS),
    n4=st.integers(0, 700),
    n8=st.integers(0, 400),
    k=shapes.in_features,
    t=st.integers(1, 64),
    dtype=st.sampled_from(DTYPES),
    half=st.booleans(),
    seed=st.integers(0, 999),
)
def test_product(
    format: Format, n4: int, n8: int, k: int, t: int, dtype: torch.dtype, half: bool, seed: int
) -> None:
    n8 = max(n8, 1 - n4)
    weight = random_weight(n4, n8, k, format, seed, half=half, device="cuda")
    linear = CudaLinear(layout.to_kernel_order(weight, format), format)
    rows = skinny.table(linear.scales.key)
    t = min(t, rows[-1].tokens)
    tile = next(row.tile for row in rows if t <= row.tokens and n4 + n8 <= row.channels)
    x = shapes.inputs(t, k, seed).cuda().to(dtype)
    if t > 2:
        x[t // 2, k // 2] = torch.nan
    bias = torch.randn(n4 + n8, device="cuda").to(dtype) if seed % 2 else None
    y = run(linear, x, bias, tile)
    expected = reference.ReferenceLinear(weight, format)(x, bias)
    assert_as(y, expected, exact=linear.scales.key == "whole", float32_error=1e-5)


@pytest.mark.parametrize(("n", "k"), [(10300, 300), (200, 16600)])
def test_wide_and_long_layers_go_through_hopper(n: int, k: int) -> None:
    """Twice, since the second call repeats the launches of the first."""
    weight = random_weight(n - 40, 40, k, FAST, k, device="cuda")
    linear = CudaLinear(layout.to_kernel_order(weight, FAST), FAST)
    with torch.no_grad():
        for t in (17, 31, 63):
            assert not skinny.takes(0, linear.scales, t, n, -(-k // 128))
            for seed in (t, t + 1):
                x = shapes.inputs(t, k, seed).cuda().half()
                expected = reference.ReferenceLinear(weight, FAST)(x)
                assert torch.equal(linear(x), expected)


@pytest.mark.parametrize("t", [1, 4, 16, 40, 64])
def test_back_to_back_in_a_graph(t: int) -> None:
    """Each product starts while the one before runs, on the same buffers: what it reads must be its own."""
    weight = random_weight(1500, 200, 4096, FAST, t, device="cuda")
    linear = CudaLinear(layout.to_kernel_order(weight, FAST), FAST)
    inputs = [torch.randn(t, 4096, device="cuda", dtype=torch.half) for _ in range(12)]
    tile = skinny.choose(linear.scales, t, 1700, 32)
    assert tile
    buffers = ops.quantize(inputs[0], True, 0, True)
    outputs = [torch.full((t, 1700), 7777.0, device="cuda", dtype=torch.half) for _ in inputs]
    alone = []
    for x, y in zip(inputs, outputs, strict=True):
        quantizing.quantize_into(x, True, 0, *buffers)
        torch.cuda.synchronize()
        skinny.gemm_into(y, *buffers, linear.tensors, None, linear.scales, 0, tile)
        torch.cuda.synchronize()
        alone.append(y.clone())
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for x, y in zip(inputs, outputs, strict=True):
            quantizing.quantize_into(x, True, 0, *buffers)
            skinny.gemm_into(y, *buffers, linear.tensors, None, linear.scales, 0, tile)
    for _ in range(20):
        for y in outputs:
            y.fill_(7777)
        graph.replay()
        assert all(torch.equal(y, expected) for y, expected in zip(outputs, alone, strict=True))
