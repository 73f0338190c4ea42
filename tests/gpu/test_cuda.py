"""The CUDA backend on a GPU against the reference; run with pytest -m gpu on a machine that has one."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mixllm.config import Format
from mixllm.errors import MixllmError
from mixllm.kernels import activations, reference
from mixllm.kernels.cuda import CudaLinear, layout, ops, prepare, quantizing
from tests import shapes
from tests.gpu.guarded import assert_as, run_guarded
from tests.kernels.cuda.weights import random_weight

pytestmark = pytest.mark.gpu

DTYPES = [torch.float16, torch.bfloat16, torch.float32]


@pytest.fixture(autouse=True)
def true_division(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU torch divides by a number by multiplying with its inverse; a scale is a true quotient."""
    on_cpu = activations.quantize_activations

    def quantize(x: Tensor, format: Format) -> tuple[Tensor, Tensor]:
        codes, scales = on_cpu(x.cpu(), format)
        return codes.to(x.device), scales.to(x.device)

    monkeypatch.setattr(reference, "quantize_activations", quantize)


def group_of(format: Format) -> int:
    return 0 if format.activation_group == "token" else format.activation_group


def run(linear: CudaLinear, x: Tensor, bias: Tensor | None) -> Tensor:
    """As linear(x, bias), under guard."""
    tile = ops.choose(linear.scales, x.shape[0], ops.device(0).shared_limit)

    def product(y: Tensor) -> None:
        quantized = ops.quantize(x, linear.format.rotation == "hadamard", linear.group)
        ops.gemm_into(y, *quantized, linear.tensors, bias, linear.scales, linear.group, tile)
        assert bool((quantized[3] == 0).all()), "flags are left as they were"

    return run_guarded(x, linear.weight.out_features, product)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("format", shapes.FORMATS[:8], ids=shapes.FORMAT_IDS[:8])
@pytest.mark.parametrize(("t", "k"), [(1, 1), (5, 200), (70, 1100), (6, 4096), (2, 40000)])
def test_activations_bit_for_bit(format: Format, dtype: torch.dtype, t: int, k: int) -> None:
    x = shapes.inputs(t, k, 0).cuda()
    if t > 4:
        x[1], x[2] = 0, 1e-40
        x[3, k // 2], x[4, 0] = torch.nan, torch.inf
    x = x.to(dtype)
    codes, scales, sums, _ = ops.quantize(x, format.rotation == "hadamard", group_of(format))
    expected, expected_scales = activations.quantize_activations(x.cpu(), format)
    assert torch.equal(codes[:, :k].cpu().float(), expected)
    assert not codes[:, k:].any()
    assert torch.equal(scales[:, :t].T.cpu().nan_to_num(-1), expected_scales.nan_to_num(-1))
    if format.activation_group == "token":
        assert torch.equal(sums.cpu(), expected.sum(1).int())


@settings(deadline=None, max_examples=150)
@given(
    format=st.sampled_from(shapes.FORMATS),
    n4=st.integers(0, 300),
    n8=st.integers(1, 200),
    k=shapes.in_features,
    t=st.sampled_from([1, 3, 8, 9, 16, 17, 33, 64, 65, 130, 300]),
    dtype=st.sampled_from(DTYPES),
    half=st.booleans(),
    seed=st.integers(0, 999),
)
def test_product(
    format: Format, n4: int, n8: int, k: int, t: int, dtype: torch.dtype, half: bool, seed: int
) -> None:
    weight = random_weight(n4, n8, k, format, seed, half=half, device="cuda")
    linear = CudaLinear(layout.to_kernel_order(weight, format), format)
    x = shapes.inputs(t, k, seed).cuda().to(dtype)
    if t > 2:
        x[t // 2, k // 2] = torch.nan
    bias = torch.randn(n4 + n8, device="cuda").to(dtype) if seed % 2 else None
    y = run(linear, x, bias)
    expected = reference.ReferenceLinear(weight, format)(x, bias)
    assert_as(y, expected, exact=linear.scales.key == "whole", float32_error=1e-5)


@pytest.mark.parametrize("format", shapes.FORMATS[::3], ids=shapes.FORMAT_IDS[::3])
@pytest.mark.parametrize("t", [1, 12, 40, 200])
def test_integer_sums_are_exact(format: Format, t: int) -> None:
    weight = random_weight(150, 40, 1100, format, t, unit_scales=True, device="cuda")
    linear = CudaLinear(layout.to_kernel_order(weight, format), format)
    codes, scales, sums, flags = ops.quantize(torch.randn(t, 1100, device="cuda"), False, linear.group)
    ones, kind = scales.fill_(1), linear.scales.weight
    y = ops.gemm(codes, ones, sums, flags, linear.tensors, None, 190, torch.float32, kind, linear.group)
    values = reference.ReferenceLinear(weight, format).values
    assert torch.equal(y.double(), codes[:, :1100].double() @ values.double().T)


def test_prepare_bad_input_graph_and_no_tokens() -> None:
    format = Format()
    weight = random_weight(64, 16, 256, format, 0)
    linear = prepare(weight, format, "cuda")
    assert linear(torch.empty(0, 256, device="cuda", dtype=torch.half)).shape == (0, 80)
    x = torch.randn(2, 3, 256, device="cuda", dtype=torch.half)
    eager = linear(x)
    for bad in (x.cpu(), x.double(), x[..., :128]):
        with pytest.raises(MixllmError):
            linear(bad)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = linear(x)
    graph.replay()
    assert torch.equal(captured, eager)
    assert torch.equal(linear(x.transpose(0, 1)), eager.transpose(0, 1))


@pytest.mark.parametrize("t", [1, 4, 16, 40])
def test_back_to_back_in_a_graph(t: int) -> None:
    """Each product starts while the one before runs, on the same buffers: what it reads must be its own."""
    format = Format()
    weight = random_weight(1500, 200, 4096, format, t, device="cuda")
    linear = CudaLinear(layout.to_kernel_order(weight, format), format)
    inputs = [torch.randn(t, 4096, device="cuda", dtype=torch.half) for _ in range(12)]
    alone = []
    for x in inputs:
        alone.append(linear(x))
        torch.cuda.synchronize()
    buffers = ops.quantize(inputs[0], True, 0)
    outputs = [torch.full_like(alone[0], 7777.0) for _ in inputs]
    tile = ops.choose(linear.scales, t, ops.device(0).shared_limit)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for x, y in zip(inputs, outputs, strict=True):
            quantizing.quantize_into(x, True, 0, *buffers)
            ops.gemm_into(y, *buffers, linear.tensors, None, linear.scales, 0, tile)
    for _ in range(20):
        graph.replay()
        assert all(torch.equal(y, expected) for y, expected in zip(outputs, alone, strict=True))


def test_operators_pass_opcheck() -> None:
    format = Format()
    weight = random_weight(40, 9, 200, format, 1, device="cuda")
    linear = CudaLinear(layout.to_kernel_order(weight, format), format)
    x = torch.randn(5, 200, device="cuda", dtype=torch.half)
    checks = ("test_schema", "test_faketensor")
    arguments = (*ops.quantize(x, True, 0), linear.tensors, None, 49, torch.half, 0, 0)
    torch.library.opcheck(torch.ops.mixllm.quantize.default, (x, True, 0), test_utils=checks)
    torch.library.opcheck(torch.ops.mixllm.gemm.default, arguments, test_utils=checks)
