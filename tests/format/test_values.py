"""The rules of values, where validate() would need a whole checkpoint to show them."""

from __future__ import annotations

import pytest
import torch
from tests.format.layers import layer_of_all_widths

from mixllm.config import PROFILES
from mixllm.format.bits import pack_bits, packed_bytes
from mixllm.format.pack import pack
from mixllm.format.values import check_values

FORMAT, K = PROFILES["fast"], 301


@pytest.mark.parametrize("width", [3, 4, 5, 6])
@pytest.mark.parametrize("column", [0, 1, 126, 127, 128, 255, 256, 299, 300])
@pytest.mark.parametrize("high", [True, False])
def test_one_code_that_leaves_int8_is_found_wherever_it_lies(width: int, column: int, high: bool) -> None:
    """In either half of a byte, in a whole group and in the last, shorter one."""
    tensors = pack(layer_of_all_widths(FORMAT, 60, K), FORMAT).tensors()
    top, row = 2**width - 1, 1
    codes = torch.full((1, K), 0 if high else top, dtype=torch.uint8)
    zeros = codes[:, :3].clone()
    for name, values, bits in (
        ("zeros", zeros, width),
        ("multipliers", torch.full((1, 3), 15 if width < 6 else 7, dtype=torch.uint8), 4),
    ):
        tensors[f"{name}{width}"][row] = pack_bits(values, bits)[0]
    tensors[f"codes{width}"][row] = pack_bits(codes, width)[0]
    assert check_values(tensors, FORMAT, K) is None
    codes[0, column] = top - int(codes[0, column])
    tensors[f"codes{width}"][row] = pack_bits(codes, width)[0]
    assert tensors[f"codes{width}"].shape[1] == packed_bytes(K, width)
    fault = check_values(tensors, FORMAT, K)
    if width == 3:  # 16 times 7 are 112: no product of three bits leaves int8
        assert fault is None
    else:
        assert fault is not None and fault[0] == f"multipliers{width}" and fault[1].startswith("row 1: ")
