"""Tiles of 64 rows a cluster, activations quantized before and by the kernel itself; needs an sm_90 GPU."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mixllm.config import PROFILES
from mixllm.kernels import reference
from mixllm.kernels.cuda import CudaLinear, layout, ops, skinny, strips
from mixllm.kernels.cuda.clusters import ClusterTile
from mixllm.kernels.cuda.strips import HALF, WHOLE
from tests import shapes
from tests.gpu.guarded import assert_as, run_guarded
from tests.gpu.test_cuda import DTYPES, true_division
from tests.kernels.cuda.weights import random_weight

HOPPER = torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0)
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not HOPPER, reason="needs an sm_90 GPU")]
__all__ = ["true_division"]  # a fixture that is used by being here

FAST = PROFILES["fast"]
# Those of the tables, and others.
OTHERS = {ClusterTile(bn, peers, 4, WHOLE) for bn in (8, 16, 32, 64) for peers in (4, 8)}
TILES = sorted({t for t in strips.tiles("whole") if isinstance(t, ClusterTile)} | OTHERS, key=str)


@settings(deadline=None, max_examples=200)
@given(
    n4=st.integers(0, 3000),
    n8=st.integers(0, 2000),
    k=shapes.in_features,
    t=st.integers(1, 64),
    dtype=st.sampled_from(DTYPES),
    tile=st.sampled_from(TILES),
    seed=st.integers(0, 999),
)
def test_product(n4: int, n8: int, k: int, t: int, dtype: torch.dtype, tile: ClusterTile, seed: int) -> None:
    """With both ways of quantizing, where the second has room."""
    n8, t = max(n8, 1 - n4), min(t, tile.bn)
    weight = random_weight(n4, n8, k, FAST, seed, device="cuda")
    linear = CudaLinear(layout.to_kernel_order(weight, FAST), FAST)
    x = shapes.inputs(t, k, seed).cuda().to(dtype)
    if t > 2:
        x[t // 2, k // 2] = torch.nan
    bias = torch.randn(n4 + n8, device="cuda").to(dtype) if seed % 2 else None
    expected = reference.ReferenceLinear(weight, FAST)(x, bias)
    groups = -(-k // 128)

    def check(y: Tensor) -> None:
        assert_as(y, expected, exact=True, float32_error=0)

    if tile.room(linear.scales, t, groups):
        quantized = ops.quantize(x, True, 0, True)
        given = (*quantized, linear.tensors, bias, linear.scales, 0, tile)
        check(run_guarded(x, n4 + n8, lambda y: skinny.gemm_into(y, *given)))
    if tile.room(linear.scales, t, groups, quantizes=True):
        fresh = (x, linear.tensors, bias, linear.scales, True, tile)
        check(run_guarded(x, n4 + n8, lambda y: strips.linear_into(y, *fresh)))


@pytest.mark.parametrize(("t", "peers"), [(7, 4), (16, 4), (32, 8)])
def test_back_to_back_in_a_graph(t: int, peers: int) -> None:
    """Each product's inputs are the outputs of the one before, which still runs when it starts."""
    weight = random_weight(3700, 396, 4096, FAST, t, device="cuda")
    linear = CudaLinear(layout.to_kernel_order(weight, FAST), FAST)
    tile = ClusterTile(max(8, t), peers, 4, HALF if t <= 16 else WHOLE)
    states = [torch.randn(t, 4096, device="cuda", dtype=torch.bfloat16)]
    for _ in range(12):
        states.append(torch.empty_like(states[0]))
        strips.linear_into(states[-1], states[-2], linear.tensors, None, linear.scales, True, tile)
        torch.cuda.synchronize()
    again = [states[0]] + [torch.empty_like(states[0]) for _ in range(12)]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for x, y in pairwise(again):
            strips.linear_into(y, x, linear.tensors, None, linear.scales, True, tile)
    for _ in range(20):
        for y in again[1:]:
            y.fill_(7777)
        graph.replay()
        assert all(torch.equal(y, expected) for y, expected in zip(again, states, strict=True))
