"""Which few tokens go in strips, and that what is promised of an SM fits it; no GPU is needed."""

from __future__ import annotations

import pytest

from mixllm.kernels.cuda import quantizing, strips
from mixllm.kernels.cuda.strips import HALF, WHOLE, StripTile, choose, quantizes
from mixllm.kernels.cuda.tiles import Scales
from tests.kernels.cuda.compiling import KINDS
from tests.kernels.cuda.test_skinny import RESERVED, SM_SHARED

FAST, PAPER = Scales(0, True), Scales(1, False)
QUANTIZER_SHARED = 2 * (RESERVED + 512)


def test_two_blocks_leave_room_for_the_quantizer() -> None:
    assert 2 * (HALF + RESERVED) + QUANTIZER_SHARED <= SM_SHARED
    assert WHOLE + RESERVED <= SM_SHARED


@pytest.mark.parametrize("scales", KINDS, ids=str)
@pytest.mark.parametrize("tokens", [1, 5, 8, 16])
@pytest.mark.parametrize("groups", [5, 32, 64, 112, 224])
def test_what_is_chosen_has_room(scales: Scales, tokens: int, groups: int) -> None:
    group = 0 if scales.token else 128
    tile = choose(scales, group, tokens, 4096, groups)
    if tile is None:
        assert tokens * groups >= 16 * 112
        return
    x = tokens * min(groups, 2 * tile.chunk or groups) * 128
    x += 0 if scales.token else groups * -(-tokens // 4) * 16
    assert tile.bn >= tokens
    assert x + strips.LEAST_STAGES * tile.slots * 1024 < tile.shared


def test_activations_are_held_only_where_warps_have_registers_for_all_or_for_a_chunk() -> None:
    whole, chunks = StripTile(16, 8, 16, WHOLE, held=4), StripTile(16, 8, 16, WHOLE, 32, held=4)
    assert whole.stages(FAST, 3, 32) > 0
    assert whole.stages(FAST, 3, 33) == 0
    assert (
        chunks.stages(FAST, 3, 33)
        == chunks.stages(FAST, 3, 500)
        > StripTile(16, 8, 16, WHOLE, 32).stages(FAST, 3, 33)
    )


def test_where_it_quantizes_the_next_product_has_room_beside() -> None:
    for groups, tokens in ((5, 8), (32, 1), (32, 2), (64, 1)):
        found = quantizes(FAST, tokens, 4096, groups)
        assert found is not None
        tile, (places, vectors) = found
        assert tile.shared == HALF
        assert places >= tokens
        assert 32 * tile.warps // places * vectors * 8 >= groups * 128
        given = choose(FAST, 0, tokens, 4096, groups)
        assert given is not None and given.shared == HALF
    for groups, tokens in ((64, 4), (112, 2), (224, 1)):
        assert quantizes(FAST, tokens, 4096, groups) is None
        after = choose(FAST, 0, tokens, 4096, groups)
        assert after is not None and after.shared > HALF


def test_scales_of_groups_are_made_before() -> None:
    assert quantizes(PAPER, 1, 4096, 32) is None
    after = choose(PAPER, 128, 1, 4096, 32)
    assert after is not None and after.shared > HALF


@pytest.mark.parametrize("key", ["whole", "grouped"])
@pytest.mark.parametrize("use", ["fresh", "given", "after"])
def test_table_is_in_order_and_a_tile_has_all_tokens(key: str, use: str) -> None:
    rows = strips.table(key, use)
    assert [row.tokens for row in rows] == sorted(row.tokens for row in rows)
    assert all(row.tile.bn >= row.tokens for row in rows)
    assert all(row.tile.slots % row.tile.warps == 0 for row in rows)
    held = [row for row in rows if row.tile.held]
    assert all(row.tile.chunk in (0, row.tile.held * row.tile.warps) for row in held)
    assert all(row.tile.chunk or row.groups <= row.tile.held * row.tile.warps for row in held)


@pytest.mark.parametrize("tokens", [4, 16])
def test_narrow_layers_hold_weights_back_for_activations(tokens: int) -> None:
    """All that a block reads has room in its ring: what comes later in the beginning is not missed."""
    narrow, wide = (choose(FAST, 0, tokens, channels, 32) for channels in (6144, 6145))
    assert narrow is not None and wide is not None
    assert 0 < narrow.macros()["HEAD"] < wide.macros()["HEAD"]
    strips_each = -(-6144 // 16 // 132)
    assert strips_each * 32 <= narrow.stages(FAST, tokens, 32) * narrow.slots


def test_wide_layers_have_longer_stages() -> None:
    narrow, wide = (choose(FAST, 0, 2, channels, 4) for channels in (6144, 6145))
    assert narrow is not None and wide is not None
    assert narrow.slots < wide.slots


def test_more_tokens_go_elsewhere() -> None:
    assert choose(FAST, 0, 17, 4096, 32) is None


@pytest.mark.parametrize(
    ("tokens", "padded"), [(65, 4096), (1024, 4096), (8192, 8192), (300, 14336), (70, 128)]
)
def test_many_tokens_are_shared_out_evenly(tokens: int, padded: int) -> None:
    threads, blocks = quantizing.many_shape(tokens, padded, 132)
    assert threads * 32 >= padded
    assert threads * -(-blocks // 132) <= quantizing.MANY_THREADS
    each = -(-tokens // blocks)
    assert blocks * each < tokens + blocks
    assert blocks == -(-tokens // each)
