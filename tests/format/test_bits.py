import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.shapes import seeds

from mixllm.format.bits import pack_bits, packed_bytes, unpack_bits, unused_bits

widths = st.sampled_from([3, 4, 5, 6])


def test_three_bits_by_hand() -> None:
    values = torch.tensor([[1, 2, 3, 4, 5, 6, 7, 0], [7, 0, 0, 0, 0, 0, 0, 7]], dtype=torch.uint8)
    # 0b000_111_110_101_100_011_010_001 and 0b111 ... 0b111
    assert pack_bits(values, 3).tolist() == [[0xD1, 0x58, 0x1F], [0x07, 0x00, 0xE0]]


@given(widths, st.integers(0, 4), st.integers(0, 37), seeds)
def test_bits_come_back(bits: int, n: int, k: int, seed: int) -> None:
    values = torch.randint(
        1 << bits, (n, k), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8
    )
    packed = pack_bits(values, bits)
    assert packed.shape == (n, packed_bytes(k, bits)) and packed.dtype == torch.uint8
    assert torch.equal(unpack_bits(packed, k, bits), values)
    assert n == 0 or k == 0 or not unused_bits(packed, k, bits)


@given(widths, st.integers(1, 37), seeds)
def test_a_row_is_one_number_of_so_many_digits(bits: int, k: int, seed: int) -> None:
    values = torch.randint(
        1 << bits, (1, k), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8
    )
    number = int.from_bytes(bytes(pack_bits(values, bits)[0].tolist()), "little")
    assert number == sum(value << bits * i for i, value in enumerate(values[0].tolist()))


@pytest.mark.parametrize(("bits", "k", "last"), [(3, 3, 0x02), (5, 1, 0x20), (6, 1, 0x40), (4, 1, 0x10)])
def test_what_lies_beyond_the_last_code_is_seen(bits: int, k: int, last: int) -> None:
    packed = torch.zeros(2, packed_bytes(k, bits), dtype=torch.uint8)
    assert not unused_bits(packed, k, bits)
    packed[1, -1] = last
    assert unused_bits(packed, k, bits)
