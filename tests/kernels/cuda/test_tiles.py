"""The table of tiles, and the shapes of launches."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixllm.config import Format
from mixllm.kernels.cuda import quantizing
from mixllm.kernels.cuda.tiles import Scales, choose, shared_bytes, table


@pytest.mark.parametrize("key", ["whole", "grouped"])
def test_table_is_in_order_and_serves_all(key: str) -> None:
    most = [tokens for tokens, _ in table(key)]
    assert most == sorted(most)
    assert most[-1] >= 2**20
    for tokens, tile in table(key):
        assert not tile.stream or tile.bn >= tokens, "a streaming kernel has one block of tokens"


@pytest.mark.parametrize(("tokens", "bn"), [(1, 8), (8, 8), (9, 16), (17, 32)])
def test_few_tokens_take_a_narrow_tile(tokens: int, bn: int) -> None:
    assert choose(Scales(0, True), tokens, 232448).bn == bn


def test_stages_are_given_up_where_shared_memory_is_short() -> None:
    scales = Scales(0, True)
    wide, narrow = (choose(scales, 1, limit) for limit in (232448, 101376))
    assert narrow.stages < wide.stages
    assert shared_bytes(narrow, scales) <= 101376


def test_scales_of_a_format() -> None:
    assert Scales.of(Format(), False) == Scales(0, True)
    assert Scales.of(Format(weight_scale="group", activation_group=128), True) == Scales(2, False)
    assert Scales.of(Format(weight_scale="row", activation_group=256), False).key == "grouped"


@given(
    tokens=st.integers(1, 9000),
    groups=st.integers(1, 1024),
    clusters=st.booleans(),
    group=st.sampled_from([0, 128]),
    heavy=st.booleans(),
)
def test_quantizing_blocks_cover_their_token(
    tokens: int, groups: int, clusters: bool, group: int, heavy: bool
) -> None:
    vectors, threads, rounds, parts = quantizing.launch_shape(tokens, groups * 128, clusters, group, heavy)
    assert vectors in (1, 2, 4) and (vectors < 4 or not heavy or parts > 1)
    assert threads % 64 == 0
    assert threads <= (
        quantizing.MOST_THREADS if parts == 1 else (1 if tokens <= 16 else 2) * quantizing.PART_THREADS
    )
    assert parts == 1 or (clusters and parts == rounds <= 8)
    assert groups * 128 <= 8 * vectors * threads * rounds
    assert parts > 1 or 8 * vectors * threads * (rounds - 1) < groups * 128
