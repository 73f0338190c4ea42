"""Strips of 16 rows, with activations quantized before and by the kernel itself; needs an sm_90 GPU."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mixllm.config import PROFILES, Format
from mixllm.kernels import reference
from mixllm.kernels.cuda import CudaLinear, layout, ops, skinny, strips
from mixllm.kernels.cuda.strips import WHOLE, StripTile
from tests import shapes
from tests.gpu.guarded import assert_as, run_guarded
from tests.gpu.test_cuda import DTYPES, true_division
from tests.kernels.cuda.inverses import untiled
from tests.kernels.cuda.weights import random_weight

HOPPER = torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0)
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not HOPPER, reason="needs an sm_90 GPU")]
__all__ = ["true_division"]  # a fixture that is used by being here

FAST = PROFILES["fast"]
# Those of the tables, with few groups of activations at a time, in clusters, and with few in registers.
OTHERS = {StripTile(16, 8, 16, WHOLE, *rest) for rest in ((8, 1), (0, 2), (0, 4), (0, 2, 2), (16, 1, 2))}
TILES = sorted(strips.tiles("whole") | strips.tiles("grouped") | OTHERS, key=str)


@settings(deadline=None, max_examples=200)
@given(
    format=st.sampled_from(shapes.FORMATS),
    n4=st.integers(0, 5000),
    n8=st.integers(0, 3000),
    k=shapes.in_features,
    t=st.integers(1, 16),
    dtype=st.sampled_from(DTYPES),
    half=st.booleans(),
    chosen=st.sampled_from(TILES),
    seed=st.integers(0, 999),
)
def test_product(
    format: Format, n4: int, n8: int, k: int, t: int, dtype: torch.dtype, half: bool,
    chosen: strips.StripTile, seed: int,
) -> None:  # fmt: skip
    """With both ways of quantizing, where the second has room."""
    n8, t = max(n8, 1 - n4), min(t, chosen.bn)
    weight = random_weight(n4, n8, k, format, seed, half=half, device="cuda")
    linear = CudaLinear(layout.to_kernel_order(weight, format), format)
    x = shapes.inputs(t, k, seed).cuda().to(dtype)
    if t > 2:
        x[t // 2, k // 2] = torch.nan
    bias = torch.randn(n4 + n8, device="cuda").to(dtype) if seed % 2 else None
    rotate, groups = format.rotation == "hadamard", -(-k // 128)
    quantized = ops.quantize(x, rotate, linear.group)
    x_scales = 0 if linear.scales.token else quantized[1].numel() * 4
    expected = reference.ReferenceLinear(weight, format)(x, bias)

    def check(y: Tensor) -> None:
        assert_as(y, expected, exact=linear.scales.key == "whole", float32_error=1e-5)

    if chosen.stages(linear.scales, t, groups, x_scales) >= strips.LEAST_STAGES:
        rest = (linear.tensors, bias, linear.scales, linear.group, chosen)
        check(run_guarded(x, n4 + n8, lambda y: skinny.gemm_into(y, *quantized, *rest)))
    found = strips.quantizes(linear.scales, t, n4 + n8, groups)
    if found:
        fresh = (x, linear.tensors, bias, linear.scales, rotate, *found)
        check(run_guarded(x, n4 + n8, lambda y: strips.linear_into(y, *fresh)))


@pytest.mark.parametrize("t", [1, 2])
def test_back_to_back_in_a_graph(t: int) -> None:
    """Each product's inputs are the outputs of the one before, which still runs when it starts."""
    weight = random_weight(3700, 396, 4096, FAST, t, device="cuda")
    linear = CudaLinear(layout.to_kernel_order(weight, FAST), FAST)
    found = strips.quantizes(linear.scales, t, 4096, 32)
    assert found
    states = [torch.randn(t, 4096, device="cuda", dtype=torch.bfloat16)]
    for _ in range(12):
        states.append(torch.empty_like(states[0]))
        strips.linear_into(states[-1], states[-2], linear.tensors, None, linear.scales, True, *found)
        torch.cuda.synchronize()
    again = [states[0]] + [torch.empty_like(states[0]) for _ in range(12)]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for x, y in pairwise(again):
            strips.linear_into(y, x, linear.tensors, None, linear.scales, True, *found)
    for _ in range(20):
        for y in again[1:]:
            y.fill_(7777)
        graph.replay()
        assert all(torch.equal(y, expected) for y, expected in zip(again, states, strict=True))


def test_operator_passes_opcheck() -> None:
    weight = random_weight(40, 9, 200, FAST, 1, device="cuda")
    linear = CudaLinear(layout.to_kernel_order(weight, FAST), FAST)
    x = torch.randn(1, 200, device="cuda", dtype=torch.half)
    checks = ("test_schema", "test_faketensor")
    arguments = (x, linear.tensors, None, 49, 0, True)
    torch.library.opcheck(torch.ops.mixllm.linear_few.default, arguments, test_utils=checks)


@pytest.mark.parametrize("k", [576, 1000, 4096, 14336])
@pytest.mark.parametrize("t", [65, 700])
def test_quantizer_of_many_tokens(t: int, k: int) -> None:
    """The same bits as one block a token, whatever the format."""
    x = torch.randn(t, k, device="cuda", dtype=torch.bfloat16)
    x[3, 5], x[7] = torch.nan, 0
    for format in shapes.FORMATS[:8]:
        group = 0 if format.activation_group == "token" else format.activation_group
        rotate = format.rotation == "hadamard"
        many = ops.quantize(x, rotate, group, True)
        few = [ops.quantize(part, rotate, group, True) for part in x.split(64)]
        codes = torch.cat([untiled(part[0]) for part in few])
        assert torch.equal(untiled(many[0]), codes)
        scales = torch.cat([q[1][:, : len(p)] for q, p in zip(few, x.split(64), strict=True)], 1)
        assert torch.equal(many[1][:, :t].nan_to_num(-1), scales.nan_to_num(-1))
        if group == 0:
            assert torch.equal(many[2], torch.cat([part[2] for part in few]))
        assert not many[3].any()
