from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.format.layers import layer_of_all_widths, rounded_layer
from tests.shapes import FORMATS, in_features, out_features, seeds

from mixllm.config import KERNEL_WIDTHS, PROFILES, WIDTHS, Format
from mixllm.format.pack import for_kernels, pack, pack_nibbles, shapes, unpack, unpack_nibbles

formats = st.sampled_from(FORMATS)
shares = st.sampled_from([0.0, 0.3, 1.0])
sizes = st.sampled_from([1.0, 1e-6])


def test_nibbles_put_the_even_index_low() -> None:
    values = torch.tensor([[1, 2, 3, 4], [15, 0, 0, 15]], dtype=torch.uint8)
    assert pack_nibbles(values).tolist() == [[0x21, 0x43], [0x0F, 0xF0]]


def test_a_missing_last_nibble_is_zero() -> None:
    assert pack_nibbles(torch.tensor([[1, 2, 15]], dtype=torch.uint8)).tolist() == [[0x21, 0x0F]]


@given(st.integers(0, 4), st.integers(0, 9), seeds)
def test_nibbles_come_back(n: int, k: int, seed: int) -> None:
    values = torch.randint(16, (n, k), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    packed = pack_nibbles(values)
    assert packed.shape == (n, -(-k // 2)) and packed.dtype == torch.uint8
    assert torch.equal(unpack_nibbles(packed, k), values)


@given(formats, out_features, in_features, shares, seeds, sizes)
def test_a_layer_comes_back_exactly(
    format: Format, n: int, k: int, share8: float, seed: int, size: float
) -> None:
    rounded = rounded_layer(format, n, k, share8, seed, size)
    again = unpack(pack(rounded, format), format)
    for field in fields(rounded):
        before, after = getattr(rounded, field.name), getattr(again, field.name)
        if before is None:
            assert after is None, field.name
        else:
            assert after.dtype == before.dtype and torch.equal(after, before), field.name


@given(formats, out_features, in_features, seeds, sizes)
def test_rows_of_all_widths_come_back_exactly(format: Format, n: int, k: int, seed: int, size: float) -> None:
    rounded = layer_of_all_widths(format, n, k, seed, size)
    stored = pack(rounded, format)
    again = unpack(stored, format)
    for field in fields(rounded):
        before, after = getattr(rounded, field.name), getattr(again, field.name)
        assert (before is None and after is None) or torch.equal(after, before), field.name
    counts = {width: int((rounded.bits == width).sum()) for width in WIDTHS}
    assert stored.counts == {width: n for width, n in counts.items() if n or width in KERNEL_WIDTHS}
    expected = shapes(format, counts, k)
    assert {name: t.shape for name, t in stored.tensors().items()} == {
        name: shape for name, (shape, _) in expected.items()
    }


@given(formats, out_features, in_features, seeds)
def test_kernels_get_the_same_weights_in_rows_of_4_and_8_bits(
    format: Format, n: int, k: int, seed: int
) -> None:
    rounded = layer_of_all_widths(format, n, k, seed)
    stored = pack(rounded, format)
    given = for_kernels(stored, format)
    assert tuple(given.counts) == KERNEL_WIDTHS
    assert given.counts[8] == int((rounded.bits > 4).sum())
    assert not len(given.codes8) or int(given.codes8.amin()) >= -127
    torch.testing.assert_close(unpack(given, format).dequantize(), rounded.dequantize(), rtol=1e-6, atol=0)
    assert for_kernels(given, format) is given


@given(formats, out_features, in_features, shares, seeds, sizes)
def test_packed_tensors_have_the_promised_shapes(
    format: Format, n: int, k: int, share8: float, seed: int, size: float
) -> None:
    rounded = rounded_layer(format, n, k, share8, seed, size)
    n4 = int((rounded.bits == 4).sum())
    tensors, expected = pack(rounded, format).tensors(), shapes(format, {4: n4, 8: n - n4}, k)
    assert tensors.keys() == expected.keys()
    for name, (shape, dtypes) in expected.items():
        assert tensors[name].shape == shape and tensors[name].dtype in dtypes, name


@pytest.mark.parametrize("share8", [0.0, 0.5, 1.0])
def test_rows_are_sorted_by_width_and_then_in_order(share8: float) -> None:
    rounded = rounded_layer(PROFILES["fast"], 9, 5, share8, seed=1)
    rows = pack(rounded, PROFILES["fast"]).rows.tolist()
    assert rows == sorted(range(9), key=lambda row: (int(rounded.bits[row]), row))


def test_group_scales_are_float16_only_where_that_is_exact() -> None:
    paper = PROFILES["paper"]
    exact = rounded_layer(paper, 9, 200, 0.5)
    assert pack(exact, paper).scales4.dtype == torch.float16
    tiny = torch.where(exact.bits[:, None] == 8, 2.0**-15, exact.scales)
    narrow = pack(replace(exact, scales=tiny), paper)
    assert (narrow.scales4.dtype, narrow.scales8.dtype) == (torch.float16, torch.float32)


@given(formats, out_features, in_features, seeds)
def test_widened_rows_stand_for_the_same_weights(format: Format, n: int, k: int, seed: int) -> None:
    """As they are, and not only once they are packed, which leaves out what 8-bit rows have no use for."""
    rounded = layer_of_all_widths(format, n, k, seed)
    wide = rounded.widened()
    assert set(wide.bits.tolist()) <= set(KERNEL_WIDTHS)
    torch.testing.assert_close(wide.dequantize(), rounded.dequantize(), rtol=1e-6, atol=0)
