"""The kernels' order and back, bit for bit, and the order itself against the picture in layout.py."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mixllm.config import Format
from mixllm.format.pack import unpack_nibbles
from mixllm.kernels.cuda import layout
from mixllm.kernels.cuda.layout import to_kernel_order
from tests import shapes
from tests.kernels.cuda.inverses import from_kernel_order
from tests.kernels.cuda.weights import random_weight


@settings(deadline=None, max_examples=60)
@given(
    format=st.sampled_from(shapes.FORMATS),
    n4=st.integers(0, 40),
    n8=st.integers(1, 40),
    k=shapes.in_features,
    half=st.booleans(),
    seed=shapes.seeds,
)
def test_there_and_back(format: Format, n4: int, n8: int, k: int, half: bool, seed: int) -> None:
    weight = random_weight(n4, n8, k, format, seed, half=half)
    back = from_kernel_order(to_kernel_order(weight, format), format)
    for name, tensor in weight.tensors().items():
        other = back.tensors()[name]
        assert other.dtype == tensor.dtype
        assert torch.equal(other, tensor), name


def test_many_rows_are_converted_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    format = Format()
    weight = random_weight(150, 90, 200, format, 0)
    whole = to_kernel_order(weight, format)
    monkeypatch.setattr(layout, "AT_ONCE", 2 * layout.TILE * 200 + 7)
    assert layout.tiles_at_once(200) == 2
    pieces = to_kernel_order(weight, format)
    assert torch.equal(whole.codes4, pieces.codes4)
    assert torch.equal(whole.codes8, pieces.codes8)
    assert torch.equal(whole.scales4, pieces.scales4)


@pytest.mark.parametrize(("row", "k"), [(0, 0), (3, 5), (11, 77), (15, 127), (20, 130)])
def test_a_four_bit_code_is_where_the_picture_says(row: int, k: int) -> None:
    format = Format()
    weight = random_weight(21, 1, 131, format, 1)
    stored = to_kernel_order(weight, format).codes4
    expected = unpack_nibbles(weight.codes4, 131)[row, k]
    half, g = divmod(row % 16, 8)
    panel, inside = divmod(k % 128, 64)
    c, rest = divmod(inside, 16)
    j, rest = divmod(rest, 8)
    high, i = divmod(rest, 4)
    byte = stored[row // 16, k // 128, panel * 512 + (4 * g + c) * 16 + (2 * j + half) * 4 + i]
    assert int(byte) >> 4 * high & 15 == int(expected)


def test_an_eight_bit_code_is_where_the_picture_says() -> None:
    format = Format()
    weight = random_weight(1, 21, 131, format, 2)
    stored = to_kernel_order(weight, format).codes8
    assert int(stored[1, 2, 2 * 64 + 2].view(torch.int8)) == int(weight.codes8[18, 130])


def test_what_fills_up_k_weighs_nothing() -> None:
    format = Format(weight_scale="row")
    weight = random_weight(3, 1, 129, format, 3)
    filled = layout.in_rows4(to_kernel_order(weight, format).codes4)[:3, 129:]
    zeros = unpack_nibbles(weight.zeros4, 1)
    assert torch.equal(filled, zeros.expand_as(filled))
