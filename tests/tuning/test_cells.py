"""Codes that can be learned: those given at first, and always within the limits of their grid."""

from __future__ import annotations

import pytest
import torch

from mixllm.config import Format, QuantConfig
from mixllm.format.pack import pack
from mixllm.format.rounded import Rounded
from mixllm.kernels.reference import ReferenceLinear
from mixllm.rotation import rotate
from mixllm.rounding import round_rows
from mixllm.tuning.cells import DAMPING, REACH, Cells
from mixllm.tuning.layer import TunedLinear
from tests import shapes
from tests.shapes import FORMAT_IDS, FORMATS

T, N, K = 5, 21, 328


def rounded(format: Format, weight: torch.Tensor) -> Rounded:
    widths = torch.tensor([3, 4, 5, 6, 8], dtype=torch.uint8).repeat(5)[:N]
    return round_rows(weight, widths, QuantConfig(format=format, rounding="rtn", clip=False), None)


@pytest.mark.parametrize("format", FORMATS, ids=FORMAT_IDS)
def test_at_first_codes_are_those_given_and_the_layer_is_the_reference(format: Format) -> None:
    # Other weights than were rounded, as those that GPTQ corrected are.
    weight, other = shapes.weight(N, K, 3), shapes.weight(N, K, 4)
    made = rounded(format, weight)
    tuned = TunedLinear(made, format, None, None, other)
    assert torch.equal(tuned.result(made).codes, made.codes)
    x = shapes.inputs(T, K, 1)
    # A rotation whose sums run in another order moves a few activations by one of 127 steps.
    expected = ReferenceLinear(pack(made.widened(), format), format)(x, None)
    torch.testing.assert_close(tuned(x), expected, rtol=2e-2, atol=2e-2 * float(x.abs().max()) / 30)


@pytest.mark.parametrize("format", FORMATS[::3], ids=FORMAT_IDS[::3])
def test_codes_never_leave_what_their_grid_has(format: Format) -> None:
    weight = shapes.weight(N, K, 3)
    made = rounded(format, weight)
    tuned = TunedLinear(made, format, None, None, weight)
    assert tuned.cells is not None
    for far in (-1e4, 1e4):
        tuned.cells.place.data.fill_(far)
        codes = tuned.result(made).codes
        narrow = made.bits < 8
        top = 2 ** made.bits[narrow, None].int() - 1
        assert (codes[narrow] >= 0).all() and (codes[narrow] <= top).all()
        assert int(codes[~narrow].abs().max()) <= 127
        assert float(tuned.cells().detach().abs().max()) <= 128


def test_gradients_are_those_of_what_scales_multiply() -> None:
    format, weight = Format(), shapes.weight(N, K, 3)
    made = rounded(format, weight)
    cells = Cells(made, rotate(weight))
    up = torch.randn(N, K, generator=torch.Generator().manual_seed(5))
    (gradient,) = torch.autograd.grad(cells(), cells.place, up)
    assert made.multipliers is not None
    torch.testing.assert_close(gradient, up * made.multipliers.float().repeat_interleave(128, 1)[:, :K])


def test_the_first_to_move_are_those_between_two_codes() -> None:
    format, weight = Format(), shapes.weight(N, K, 3)
    made = rounded(format, weight)
    cells = Cells(made, rotate(weight))
    away = (cells.place.detach() - made.codes).abs()
    assert float(away.max()) <= 0.45 + 1e-4
    with torch.no_grad():
        cells.place += 0.1
    moved = cells.codes() != made.codes
    assert moved.any() and float(away[moved].min()) > 0.35


@pytest.mark.parametrize(("row", "column"), [(1, 17), (4, 327), (6, 130)])
def test_a_place_starts_where_the_layers_error_is_least_with_all_other_codes_as_they_are(
    row: int, column: int
) -> None:
    format, weight = Format(), rotate(shapes.weight(N, K, 3))
    made = rounded(format, shapes.weight(N, K, 3))
    x = shapes.inputs(500, K, 1) @ torch.randn(K, K, generator=torch.Generator().manual_seed(2))
    hessian = (x.T @ x).double()
    hessian.diagonal().add_(DAMPING * hessian.diagonal().mean())
    step = float(made.scales[row, column // 128])

    def error(places: float) -> float:
        off = (made.dequantize() - weight)[row].double()
        off[column] += places * step
        return float(off @ hessian @ off)

    low, middle, high = (error(places) for places in (-1, 0, 1))
    least = (low - high) / 2 / (low - 2 * middle + high)
    found = float(Cells(made, weight, x.T @ x).place[row, column].detach() - made.codes[row, column])
    assert found == pytest.approx(min(max(least, -REACH), REACH), abs=2e-3)


def test_inputs_that_are_all_zero_ask_for_nothing() -> None:
    format, weight = Format(), shapes.weight(N, K, 3)
    made = rounded(format, weight)
    alone, zeros = Cells(made, rotate(weight)), Cells(made, rotate(weight), torch.zeros(K, K))
    torch.testing.assert_close(zeros.place, alone.place)
