"""int8 activations: the rule of docs/format.md, its extremes included."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given

from mixllm.config import Format
from mixllm.kernels.activations import fake_quantize, quantize_activations
from tests import shapes

PLAIN = Format(rotation="none", activation_group=128)
TOKEN = Format(rotation="none", activation_group="token")


def test_by_hand() -> None:
    x = torch.zeros(1, 130)
    x[0, :4] = torch.tensor([-254.0, 1.0, 3.0, 127.0])
    x[0, 129] = 0.5
    codes, scales = quantize_activations(x, PLAIN)
    assert codes[0, :4].tolist() == [-127, 0, 2, 64]  # 0.5, 1.5 and 63.5 are rounded to even
    assert codes[0, 128:].tolist() == [0, 127]
    assert scales.tolist() == [[2.0, torch.tensor(0.5 / 127).item()]]


@pytest.mark.parametrize("format", shapes.FORMATS[4:8], ids=shapes.FORMAT_IDS[4:8])
@given(shapes.tokens, shapes.in_features, shapes.seeds)
def test_error_is_at_most_half_a_step(format: Format, t: int, k: int, seed: int) -> None:
    x = shapes.inputs(t, k, seed)
    codes, scales = quantize_activations(x, format)
    width = format.activation_width(k)
    assert scales.shape == (t, math.ceil(k / width))
    assert bool((codes == codes.round()).all()) and bool((codes.abs() <= 127).all())
    still = fake_quantize(x, format)
    plain = fake_quantize(x, format.model_copy(update={"rotation": "none"}))
    step = scales.repeat_interleave(width, dim=1)[:, :k]
    torch.testing.assert_close(codes * step, still)
    unrotated_step = quantize_activations(x, format.model_copy(update={"rotation": "none"}))[1]
    assert bool(((plain - x).abs() <= 0.5001 * unrotated_step.repeat_interleave(width, dim=1)[:, :k]).all())


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("format", [PLAIN, TOKEN, Format()], ids=["group", "token", "fast"])
def test_a_bad_token_spoils_itself_alone(bad: float, format: Format) -> None:
    x = shapes.inputs(3, 200, 0)
    clean = quantize_activations(x, format)
    x[1, 150] = bad
    codes, scales = quantize_activations(x, format)
    assert bool(scales[1].isnan().any()) and bool(codes.isfinite().all())
    for row in (0, 2):
        assert torch.equal(codes[row], clean[0][row]) and torch.equal(scales[row], clean[1][row])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_token_too_large_to_rotate_spoils_itself_alone(dtype: torch.dtype) -> None:
    """Sums of outliers that are finite, each of them, leave float32's range."""
    x = shapes.inputs(3, 200, 0).to(dtype)
    clean = quantize_activations(x, Format())
    x[1, ::3] = 3e38
    codes, scales = quantize_activations(x, Format())
    assert bool(scales[1].isnan().all()) and bool(codes.isfinite().all())
    for row in (0, 2):
        assert torch.equal(codes[row], clean[0][row]) and torch.equal(scales[row], clean[1][row])
    plain = quantize_activations(x, PLAIN)
    assert bool(plain[1].isfinite().all()) and float(plain[0][1].abs().max()) == 127


def test_zeros_and_values_too_small_to_scale() -> None:
    for value in (0.0, 1e-38, 1e-44):
        codes, scales = quantize_activations(torch.full((1, 128), value), TOKEN)
        assert codes.count_nonzero() == 0 and scales.tolist() == [[1.0]]


def test_the_largest_float_is_not_lost() -> None:
    x = torch.zeros(1, 128)
    x[0, 0] = torch.finfo(torch.float32).max
    codes, scales = quantize_activations(x, TOKEN)
    assert codes[0, 0] == 127 and bool(scales.isfinite().all())
