"""The table of tiles for few tokens on Hopper; no GPU is needed."""

from __future__ import annotations

import pytest

from mixllm.kernels.cuda.skinny import choose, table
from mixllm.kernels.cuda.tiles import Scales
from tests.kernels.cuda.compiling import KINDS

SM_SHARED = 233472
RESERVED = 1024  # of each block


@pytest.mark.parametrize("scales", KINDS, ids=str)
def test_as_many_blocks_as_are_promised_fit_an_sm(scales: Scales) -> None:
    for _, tile in table(scales.key):
        assert tile.room * (tile.shared_bytes(scales) + RESERVED) <= SM_SHARED


@pytest.mark.parametrize("key", ["whole", "grouped"])
def test_table_is_in_order_and_a_tile_has_all_tokens(key: str) -> None:
    most = [tokens for tokens, _ in table(key)]
    assert most == sorted(most)
    assert all(tile.bn >= tokens for tokens, tile in table(key))


@pytest.mark.parametrize(("tokens", "bn"), [(1, 8), (8, 8), (9, 16), (17, 32), (64, 64)])
def test_few_tokens_take_a_narrow_tile(tokens: int, bn: int) -> None:
    assert choose(Scales(0, True), tokens).bn == bn
