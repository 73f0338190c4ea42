"""The table of tiles for few tokens on Hopper; no GPU is needed."""

from __future__ import annotations

import pytest

from mixllm.kernels.cuda import hopper, launch, order, skinny, strips
from mixllm.kernels.cuda.skinny import choose, most_tokens, table
from mixllm.kernels.cuda.tiles import Scales
from tests.kernels.cuda.compiling import KINDS

SM_SHARED = 233472
RESERVED = 1024  # of each block


@pytest.mark.parametrize("scales", KINDS, ids=str)
def test_as_many_blocks_as_are_promised_fit_an_sm(scales: Scales) -> None:
    for row in table(scales.key):
        assert row.tile.room * (row.tile.shared_bytes(scales) + RESERVED) <= SM_SHARED


@pytest.mark.parametrize("key", ["whole", "grouped"])
def test_table_is_in_order_and_a_tile_has_all_tokens(key: str) -> None:
    most = [row.tokens for row in table(key)]
    assert most == sorted(most)
    assert all(row.tile.bn >= row.tokens for row in table(key))


@pytest.mark.parametrize(("tokens", "bn"), [(1, 8), (8, 8), (9, 16), (17, 32), (64, 64)])
def test_few_tokens_take_a_narrow_tile(tokens: int, bn: int) -> None:
    tile = choose(Scales(0, True), tokens, 4096, 32)
    assert tile is not None and tile.bn == bn


@pytest.mark.parametrize("tokens", [1, 8, 9, 16])
def test_a_narrow_layer_leaves_room_for_the_quantizer(tokens: int) -> None:
    """One set of four warps and the one that fetches, where a wide layer has two sets: docs/kernels.md."""
    narrow, wide = (choose(Scales(0, True), tokens, channels, 32) for channels in (6144, 6145))
    assert narrow is not None and wide is not None
    assert narrow.threads < wide.threads
    assert (narrow.bm, narrow.bn) == (wide.bm, wide.bn)


@pytest.mark.parametrize("scales", KINDS, ids=str)
def test_what_is_left_out_is_hoppers(scales: Scales) -> None:
    """Wide and long layers; without a row none has a tile."""
    for tokens in range(1, 70):
        for channels, groups in ((4096, 32), (28672, 32), (4096, 112), (1_000_000, 10_000)):
            taken = choose(scales, tokens, channels, groups) is not None
            assert taken or tokens >= hopper.LEAST_TOKENS
            assert not taken or tokens <= most_tokens(scales)
    assert most_tokens(scales) == 64
    assert choose(scales, 64, 4096, 32) and not choose(scales, 64, 28672, 32)


@pytest.mark.parametrize("scales", KINDS, ids=str)
def test_activations_come_as_their_path_reads_them(scales: Scales, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unsigned, with sums of groups behind them, for hopper.cu alone: both paths share 17 to 64 tokens."""
    for module in (hopper, skinny):
        monkeypatch.setattr(module, "device", lambda _: launch.Device(0, (9, 0), 132, 232448))
    group, summed_ones = 0 if scales.token else 128, 0
    for tokens in range(1, 130):
        for channels, groups in ((40, 1), (4096, 32), (28672, 32), (4096, 112)):
            tiled, summed = order(0, scales, group, tokens, channels, groups)
            if choose(scales, tokens, channels, groups) is None:
                assert tiled and summed == scales.unsigned
                summed_ones += summed
            else:
                assert not summed
                assert tiled == (strips.choose(scales, group, tokens, channels, groups) is None)
    assert (summed_ones > 0) == scales.unsigned
