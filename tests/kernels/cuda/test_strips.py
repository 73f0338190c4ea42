"""Which few tokens go in strips, and that what is promised of an SM fits it; no GPU is needed."""

from __future__ import annotations

import pytest

from mixllm.kernels.cuda import ops, strips
from mixllm.kernels.cuda.strips import HALF, TILES, WHOLE, choose, quantizes
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
@pytest.mark.parametrize("groups", [5, 32, 64, 224])
def test_what_is_chosen_has_room(scales: Scales, tokens: int, groups: int) -> None:
    group = 0 if scales.token else 128
    tile = choose(scales, group, tokens, 4096, groups)
    if tile is None:
        assert tokens * groups > 8 * 112
        return
    x = tokens * groups * 128 + (0 if scales.token else groups * -(-tokens // 4) * 16)
    assert tile.bn >= tokens
    assert x + strips.LEAST_STAGES * tile.slots * 1024 < tile.shared
    assert tile in TILES[tile.bn]


def test_a_token_leaves_room_for_the_next_product() -> None:
    for groups in (32, 64, 112, 224):
        tile = choose(FAST, 0, 1, 57344, groups)
        assert tile is not None
        assert tile.shared == HALF


def test_more_tokens_of_wide_layers_go_elsewhere() -> None:
    assert choose(FAST, 0, 16, 4096, 32) is not None
    assert choose(FAST, 0, 16, 28672, 32) is None
    assert choose(FAST, 0, 17, 4096, 8) is None


@pytest.mark.parametrize(
    ("tokens", "groups", "alone"), [(1, 32, True), (1, 64, True), (1, 224, False), (2, 32, True)]
)
def test_quantizes_what_one_pass_has(tokens: int, groups: int, alone: bool) -> None:
    found = quantizes(FAST, 0, tokens, 4096, groups)
    assert (found is not None) == alone
    if found:
        tile, (places, vectors) = found
        assert places >= tokens
        assert 32 * tile.warps // places * vectors * 8 >= groups * 128


def test_groups_of_512_are_quantized_before() -> None:
    assert quantizes(Scales(0, False), 256, 1, 4096, 32) is not None
    assert quantizes(Scales(0, False), 512, 1, 4096, 32) is None


@pytest.mark.parametrize(
    ("tokens", "padded"), [(65, 4096), (1024, 4096), (8192, 8192), (300, 14336), (70, 128)]
)
def test_many_tokens_are_shared_out_evenly(tokens: int, padded: int) -> None:
    threads, blocks = ops.many_shape(tokens, padded, 132)
    assert threads * 32 >= padded
    assert threads * -(-blocks // 132) <= ops.MANY_THREADS
    each = -(-tokens // blocks)
    assert blocks * each < tokens + blocks
    assert blocks == -(-tokens // each)
