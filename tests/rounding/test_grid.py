"""The number grids hold what docs/format.md says of W4 and W8."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mixllm.config import WIDTHS, Format, QuantConfig
from mixllm.format.rounded import LEAST_HALF, Rounded, least_value
from mixllm.rounding import round_rows
from mixllm.rounding.clip import best_grid, search
from mixllm.rounding.grid import Grid, Grids, Limits
from tests import shapes

RTN = {"rounding": "rtn", "clip": False}


def rtn(format: Format, w: torch.Tensor, bits: torch.Tensor) -> Rounded:
    return round_rows(w, bits, QuantConfig(format=format, **RTN), None)


def test_w4_by_hand() -> None:
    w = torch.zeros(1, 128)
    w[0, :3] = torch.tensor([-1.25, 2.5, 0.625])
    r = rtn(Format(weight_scale="group", rotation="none"), w, torch.tensor([4], dtype=torch.uint8))
    assert r.scales.tolist() == [[0.25]] and r.zeros.tolist() == [[5]]
    assert r.codes[0, :4].tolist() == [0, 15, 7, 5]  # 0.625 / 0.25 = 2.5 is rounded to even


def test_w8_by_hand() -> None:
    w = torch.zeros(1, 128)
    w[0, :3] = torch.tensor([-1.0, 127 / 256, 0.25])
    r = rtn(Format(weight_scale="row", rotation="none"), w, torch.tensor([8], dtype=torch.uint8))
    assert r.codes[0, :4].tolist() == [-127, 63, 32, 0]
    assert r.zeros[0, 0] == 0


def test_integer_group_scales_by_hand() -> None:
    w = torch.zeros(1, 256)
    w[0, 0], w[0, 128], w[0, 129] = 11.9, 3.0, -1.5
    r = rtn(Format(weight_scale="group_int", rotation="none"), w, torch.tensor([4], dtype=torch.uint8))
    assert r.row_scales is not None and r.multipliers is not None
    torch.testing.assert_close(r.row_scales, torch.tensor([0.1]))
    assert r.multipliers.tolist() == [[8, 3]]  # 11.9 / 15 = 0.793 and 4.5 / 15 = 0.3
    assert r.zeros.tolist() == [[0, 5]]
    assert r.codes[0, [0, 128, 129]].tolist() == [15, 15, 0]


@pytest.mark.parametrize("format", shapes.FORMATS[::4], ids=shapes.FORMAT_IDS[::4])
@given(shapes.out_features, shapes.in_features, st.sampled_from([0.0, 0.3, 1.0]), shapes.seeds)
def test_codes_stay_in_range_and_near_the_weight(
    format: Format, n: int, k: int, share8: float, seed: int
) -> None:
    w = shapes.weight(n, k, seed)
    bits = shapes.widths(n, share8, seed) if share8 < 1 else shapes.any_widths(n, seed)
    r = rtn(format, w, bits)
    codes = r.codes.int()
    eight, top = (bits == 8)[:, None], (2 ** bits.int() - 1)[:, None]
    assert bool(torch.where(eight, codes.abs() <= 127, (codes >= 0) & (codes <= top)).all())
    assert bool((r.zeros <= torch.where(eight, 0, top)).all())
    assert bool((r.scales > 0).all()) and bool(torch.isfinite(r.scales).all())
    if r.multipliers is not None and r.row_scales is not None:
        steps = r.multipliers.int().repeat_interleave(128, 1)[:, :k] * (
            codes - r.zeros.int().repeat_interleave(128, 1)[:, :k]
        )
        least = torch.where(bits > 4, -127, -128)[:, None]
        assert bool((steps >= least).all()) and bool((steps <= 127).all())
        assert torch.equal(r.scales, r.row_scales[:, None] * r.multipliers)
    if format.rotation == "none":
        # Half a step, or a step and a half where a rounded zero or multiplier clamps the range's ends.
        steps_off = (r.dequantize() - w).abs() / r.scales.repeat_interleave(128, 1)[:, :k]
        assert bool((steps_off <= (8.1 if format.weight_scale == "group_int" else 1.6)).all())


@pytest.mark.parametrize("width", WIDTHS)
def test_codes_are_those_whose_products_are_int8_and_no_fewer(width: int) -> None:
    """Of every zero point and multiplier that a group can have."""
    limits = Limits.of(torch.tensor([width], dtype=torch.uint8))
    top, least = int(limits.top), least_value(width)
    zeros = torch.arange(top + 1.0 if width < 8 else 1.0)[None, :]
    for multiplier in range(1, int(limits.multiplier) + 1):
        low, high = limits.codes(zeros, torch.full_like(zeros, multiplier))
        fits = [
            [c for c in range(-top if width == 8 else 0, top + 1) if least <= multiplier * (c - zero) <= 127]
            for zero in zeros[0].int().tolist()
        ]
        assert low[0].tolist() == [codes[0] for codes in fits], multiplier
        assert high[0].tolist() == [codes[-1] for codes in fits], multiplier


def test_a_scale_below_half_precision_is_kept_in_float32() -> None:
    format = Format(weight_scale="group", rotation="none")
    bits = torch.tensor([4, 8], dtype=torch.uint8)
    small = rtn(format, torch.full((2, 128), 1e-6), bits)
    torch.testing.assert_close(small.dequantize(), torch.full((2, 128), 1e-6), rtol=1e-6, atol=0)
    large = rtn(format, torch.full((2, 128), 3e7), bits)
    torch.testing.assert_close(large.dequantize(), torch.full((2, 128), 3e7), rtol=1e-6, atol=0)


@pytest.mark.parametrize("best", [best_grid, search])
def test_a_group_that_shrank_since_keeps_a_normal_half(best: Callable[..., Grid]) -> None:
    """GPTQ's corrections can leave less of a group than its row promised; a subnormal half has few bits."""
    grids = Grids(torch.ones(2, 128), torch.tensor([4, 8], dtype=torch.uint8), Format(weight_scale="group"))
    grid = best(grids, torch.full((2, 128), 1e-6), torch.ones(128), False)
    assert grid.scale.tolist() == [[LEAST_HALF]] * 2
