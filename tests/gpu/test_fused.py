"""Quantization fused with RMSNorm and with SiLU(gate) * up, against the layers one after the other."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mixllm.errors import MixllmError
from mixllm.kernels.cuda import ops
from mixllm.kernels.cuda.fused import rmsnorm_quantize, silu_mul_quantize
from tests.kernels.cuda.inverses import untiled
from tests.kernels.cuda.test_hopper import summed

pytestmark = pytest.mark.gpu

DTYPES = [torch.float16, torch.bfloat16, torch.float32]
SHAPES = [(1, 128), (3, 576), (70, 1100), (5, 4096), (2, 40000)]


def assert_alike(found: tuple[Tensor, ...], expected: tuple[Tensor, ...], tokens: int) -> None:
    """Sums of another order may move a value's last bit, so a code may be its neighbour, seldom."""
    scales, expected_scales = found[1][:, :tokens], expected[1][:, :tokens]
    assert torch.equal(scales.isnan(), expected_scales.isnan())
    torch.testing.assert_close(scales.nan_to_num(1), expected_scales.nan_to_num(1), rtol=2e-2, atol=0)
    apart = (found[0].int() - expected[0].int()).abs()
    assert apart.max() <= 2
    assert (apart > 0).float().mean() < 0.05


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("tokens", "k"), SHAPES)
@pytest.mark.parametrize(("rotate", "group"), [(True, 0), (False, 128)])
def test_rmsnorm(tokens: int, k: int, rotate: bool, group: int, dtype: torch.dtype) -> None:
    x = torch.randn(tokens, k, device="cuda").to(dtype) * 3
    weight = torch.rand(k, device="cuda").to(dtype) + 0.5
    if tokens > 4:
        x[4, 7] = torch.nan
    normed = x.float() * (x.float().pow(2).mean(1, keepdim=True) + 1e-5).rsqrt()
    expected = ops.quantize(normed.to(dtype) * weight, rotate, group)
    assert_alike(rmsnorm_quantize(x, weight, 1e-5, rotate, group), expected, tokens)
    tiled = ops.quantize(normed.to(dtype) * weight, rotate, group, True)
    assert_alike(rmsnorm_quantize(x, weight, 1e-5, rotate, group, True), tiled, tokens)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("tokens", "k"), SHAPES)
@pytest.mark.parametrize(("rotate", "group"), [(True, 0), (False, 128)])
def test_silu_mul(tokens: int, k: int, rotate: bool, group: int, dtype: torch.dtype) -> None:
    x = torch.randn(tokens, 2 * k, device="cuda").to(dtype) * 3
    gate, up = x.chunk(2, dim=1)
    expected = ops.quantize(torch.nn.functional.silu(gate) * up, rotate, group)
    assert_alike(silu_mul_quantize(x, rotate, group), expected, tokens)


def test_sums_behind_the_codes() -> None:
    x = torch.randn(70, 800, device="cuda").half()
    weight = torch.ones(400, device="cuda").half()
    for codes, *_ in (
        silu_mul_quantize(x, True, 0, True, True),
        rmsnorm_quantize(x[:, :400], weight, 1e-5, True, 0, True, True),
        ops.quantize(x[:, :400], True, 0, True, True),
        ops.quantize(x[:, :400].float(), True, 0, True, True),
    ):
        plain = untiled((codes[:4].view(torch.uint8) ^ 128).view(torch.int8)).cpu()
        assert torch.equal(codes.cpu(), summed(plain))


def test_operators() -> None:
    x, weight = torch.randn(3, 256, device="cuda").half(), torch.ones(256, device="cuda").half()
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(
        torch.ops.mixllm.rmsnorm_quantize.default, (x, weight, 1e-5, True, 0), test_utils=checks
    )
    torch.library.opcheck(torch.ops.mixllm.silu_mul_quantize.default, (x, True, 0), test_utils=checks)
    for bad in (weight[:7], weight.float()):
        with pytest.raises(MixllmError):
            rmsnorm_quantize(x, bad, 1e-5, True, 0)
    with pytest.raises(MixllmError):
        silu_mul_quantize(x[:, :7], True, 0)
