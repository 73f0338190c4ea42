"""The table of tiles for few tokens on Hopper; no GPU is needed."""

from __future__ import annotations

import sys

import pytest

from mixllm.kernels.cuda.skinny import choose, table
from mixllm.kernels.cuda.tiles import Scales
from tests.kernels.cuda.compiling import KINDS

SM_SHARED = 233472
RESERVED = 1024  # of each block


@pytest.mark.parametrize("scales", KINDS, ids=str)
def test_as_many_blocks_as_are_promised_fit_an_sm(scales: Scales) -> None:
    for _, _, tile in table(scales.key):
        assert tile.room * (tile.shared_bytes(scales) + RESERVED) <= SM_SHARED


@pytest.mark.parametrize("key", ["whole", "grouped"])
def test_table_is_in_order_and_a_tile_has_all_tokens(key: str) -> None:
    most = [tokens for tokens, _, _ in table(key)]
    assert most == sorted(most)
    assert all(tile.bn >= tokens for tokens, _, tile in table(key))


@pytest.mark.parametrize(("tokens", "bn"), [(1, 8), (8, 8), (9, 16), (17, 32), (64, 64)])
def test_few_tokens_take_a_narrow_tile(tokens: int, bn: int) -> None:
    assert choose(Scales(0, True), tokens, 4096).bn == bn


@pytest.mark.parametrize("tokens", [1, 8, 9, 16])
def test_a_narrow_layer_leaves_room_for_the_quantizer(tokens: int) -> None:
    """One set of four warps and the one that fetches, where a wide layer has two sets: docs/kernels.md."""
    narrow, wide = (choose(Scales(0, True), tokens, channels) for channels in (6144, 6145))
    assert narrow.threads < wide.threads
    assert (narrow.bm, narrow.bn) == (wide.bm, wide.bn)


@pytest.mark.parametrize("key", ["whole", "grouped"])
def test_the_last_tile_of_so_many_tokens_has_any_channels(key: str) -> None:
    last = {tokens: channels for tokens, channels, _ in table(key)}
    assert all(channels == sys.maxsize for channels in last.values())
