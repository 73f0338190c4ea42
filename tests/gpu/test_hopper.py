"""The path for many tokens on Hopper, bit for bit against the reference; needs an sm_90 GPU."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mixllm.config import PROFILES, Format
from mixllm.kernels import activations, reference
from mixllm.kernels.cuda import CudaLinear, hopper, layout, ops
from tests import shapes
from tests.gpu.guarded import assert_as, run_guarded
from tests.gpu.test_cuda import DTYPES, true_division
from tests.kernels.cuda.inverses import untiled
from tests.kernels.cuda.weights import random_weight

HOPPER = torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0)
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not HOPPER, reason="needs an sm_90 GPU")]
__all__ = ["true_division"]  # a fixture that is used by being here

FAST = PROFILES["fast"]


def run(linear: CudaLinear, x: Tensor, bias: Tensor | None, tile: hopper.HopperTile) -> Tensor:
    """As linear(x, bias) with this tile, under guard."""

    def product(y: Tensor) -> None:
        rotate = linear.format.rotation == "hadamard"
        quantized = ops.quantize(x, rotate, linear.group, True, linear.scales.unsigned)
        hopper.gemm_into(y, *quantized, linear.tensors, bias, linear.scales, linear.group, tile)
        assert not quantized[3].any(), "flags are left as they were"

    return run_guarded(x, linear.weight.out_features, product)


@settings(deadline=None, max_examples=150)
@given(
    format=st.sampled_from(shapes.FORMATS),
    n4=st.integers(0, 700),
    n8=st.integers(0, 400),
    k=shapes.in_features,
    t=st.integers(1, 700),
    dtype=st.sampled_from(DTYPES),
    half=st.booleans(),
    choice=st.integers(0, 7),
    seed=st.integers(0, 999),
)
def test_product(
    format: Format, n4: int, n8: int, k: int, t: int, dtype: torch.dtype, half: bool, choice: int, seed: int
) -> None:
    n8 = max(n8, 1 - n4)
    weight = random_weight(n4, n8, k, format, seed, half=half, device="cuda")
    linear = CudaLinear(layout.to_kernel_order(weight, format), format)
    tiles = hopper.TILES[linear.scales.key]
    x = shapes.inputs(t, k, seed).cuda().to(dtype)
    if t > 2:
        x[t // 2, k // 2] = torch.nan
    bias = torch.randn(n4 + n8, device="cuda").to(dtype) if seed % 2 else None
    y = run(linear, x, bias, tiles[choice % len(tiles)])
    expected = reference.ReferenceLinear(weight, format)(x, bias)
    # Of unsigned operands a sum's parts are larger than the sum: docs/hopper.md.
    error = 1e-4 if linear.scales.unsigned else 3e-5
    assert_as(y, expected, exact=linear.scales.key == "whole", float32_error=error)


@pytest.mark.parametrize("rotation", ["none", "hadamard"])
@pytest.mark.parametrize(("t", "k"), [(1, 1), (5, 200), (130, 1100), (9, 40000)])
def test_activations_in_their_order(rotation: str, t: int, k: int) -> None:
    format = FAST.model_copy(update={"rotation": rotation})
    x = shapes.inputs(t, k, 0).cuda()
    codes, _, sums, _ = ops.quantize(x, rotation == "hadamard", 0, True)
    expected, _ = activations.quantize_activations(x.cpu(), format)
    plain = untiled(codes).cpu()
    assert torch.equal(plain[:, :k].float(), expected)
    assert not plain[:, k:].any()
    assert torch.equal(sums.cpu(), expected.sum(1).int())


@pytest.mark.parametrize("k", [4096, 65536])
def test_worst_codes_do_not_overflow(k: int) -> None:
    """Every byte at its largest; on the way, 255 * 127 * K wraps modulo 2^32 and comes back."""
    weight = random_weight(64, 64, k, FAST, 0, unit_scales=True, device="cuda")
    linear = CudaLinear(layout.to_kernel_order(weight, FAST), FAST)
    linear.weight.codes8.fill_(127)
    linear.weight.codes4.fill_(0xFF)
    linear.weight.scales4.fill_(0x87)  # m = 8, z = 8: every weight is 8 (15 - 8) = 56
    codes, scales, sums, flags = ops.quantize(torch.ones(200, k, device="cuda"), False, 0, True)
    y = hopper.gemm_many(codes, scales.fill_(1), sums, flags, linear.tensors, None, 128, torch.float32, 0, 0)
    channels = linear.weight.rows.long()
    assert bool((y[:, channels[:64]] == float(127 * 127 * k)).all())
    assert bool((y[:, channels[64:]] == float(56 * 127 * k)).all())


@pytest.mark.parametrize("k", [4096, 65536])
@pytest.mark.parametrize("group", [128, "token"])
def test_worst_codes_of_groups(group: int | str, k: int) -> None:
    """A group's sum of unsigned bytes at its largest, 255 * 255 * 128, and small sums of large parts."""
    format = PROFILES["paper"].model_copy(update={"activation_group": group})
    weight = random_weight(64, 64, k, format, 0, unit_scales=True, device="cuda")
    weight.codes8[::2], weight.codes8[1::2] = 127, -127
    weight.codes4.fill_(0xFF)
    weight.zeros4[::2], weight.zeros4[1::2] = 0, 0xFF
    linear = CudaLinear(layout.to_kernel_order(weight, format), format)
    y = linear(torch.ones(200, k, device="cuda"))[:, weight.rows.long()]
    expected = torch.tensor([15.0, 0.0] * 32 + [127.0, -127.0] * 32, device="cuda") * k
    torch.testing.assert_close(y, expected.expand(200, -1), rtol=1e-5, atol=1e-5 * 15 * k)


def test_linear_takes_this_path_and_keeps_its_answers() -> None:
    weight = random_weight(300, 40, 1100, FAST, 3, device="cuda")
    linear = CudaLinear(layout.to_kernel_order(weight, FAST), FAST)
    x = torch.randn(hopper.LEAST_TOKENS, 1100, device="cuda", dtype=torch.bfloat16)
    assert hopper.takes(0, linear.scales, len(x))
    few = linear(x[:-1])
    assert torch.equal(linear(x)[:-1], few)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = linear(x)
    graph.replay()
    assert torch.equal(captured[:-1], few)


@pytest.mark.parametrize("profile", ["fast", "paper"])
def test_a_planned_call_gives_what_the_operators_give(profile: str) -> None:
    """Tiles that hand partial sums on and tiles that don't, a bias and none, other buffers each time."""
    format = PROFILES[profile]
    weight = random_weight(300, 45, 4100, format, 3, device="cuda")
    linear = CudaLinear(layout.to_kernel_order(weight, format), format)
    kept = []
    for tokens in (150, 1999):
        for turn in range(3):
            x = torch.randn(tokens, 4100, device="cuda", dtype=torch.bfloat16)
            bias = torch.randn(345, device="cuda") if turn else None
            with torch.no_grad():
                kept.append((linear(x, bias), x, bias))
    assert {shape[0] for shape, *_ in linear.planned.plans} >= {150, 1999}
    for found, x, bias in kept:
        assert torch.equal(found, linear(x, bias))  # gradients are on: torch's operators


def test_groups_take_this_path_too() -> None:
    format = PROFILES["paper"]
    weight = random_weight(300, 40, 1100, format, 3, device="cuda")
    linear = CudaLinear(layout.to_kernel_order(weight, format), format)
    x = torch.randn(hopper.LEAST_TOKENS, 1100, device="cuda", dtype=torch.bfloat16)
    assert hopper.takes(0, linear.scales, len(x))
    many, few = linear(x)[:-1].float(), linear(x[:-1]).float()
    assert (many - few).norm() / few.norm() < 4e-3


def test_operator_passes_opcheck() -> None:
    weight = random_weight(40, 9, 200, FAST, 1, device="cuda")
    linear = CudaLinear(layout.to_kernel_order(weight, FAST), FAST)
    x = torch.randn(150, 200, device="cuda", dtype=torch.half)
    arguments = (*ops.quantize(x, True, 0, True), linear.tensors, None, 49, torch.half, 0, 0)
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.mixllm.quantize.default, (x, True, 0, True), test_utils=checks)
    torch.library.opcheck(torch.ops.mixllm.gemm_many.default, arguments, test_utils=checks)
