"""benchmarks/tune_strips.py: which rows of strips.json measured times make; no GPU."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from mixllm.kernels.cuda.rows import fitting, read
from mixllm.kernels.cuda.strips import StripTile

NARROW, WIDE, LONG = (100, 300), (700, 300), (700, 900)
LITTLE, MUCH, SLOW = (StripTile(8, 8, slots, 1000) for slots in (8, 16, 32))


@pytest.fixture
def tuning(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import tune_strips

    return tune_strips


def test_a_tile_with_room_follows_the_faster_one(tuning: ModuleType) -> None:
    times = {MUCH: {WIDE: 3.0, LONG: 4.0}, LITTLE: {WIDE: 1.0}, SLOW: {WIDE: 9.0, LONG: 9.0}}
    assert tuning.rows(times, {WIDE: 5.0, LONG: 5.0}) == [LITTLE, MUCH]


def test_what_spares_nothing_is_no_row(tuning: ModuleType) -> None:
    assert tuning.rows({SLOW: {WIDE: 9.0}, LITTLE: {}}, {WIDE: 5.0, LONG: 5.0}) == []


def test_narrow_layers_and_fewer_tokens_have_rows_where_they_differ(tuning: ModuleType) -> None:
    otherwise = {NARROW: 5.0, WIDE: 5.0}
    apart = ({LITTLE: {NARROW: 1.0, WIDE: 4.0}, MUCH: {NARROW: 2.0, WIDE: 3.0}}, otherwise)
    alike = ({LITTLE: {NARROW: 1.0, WIDE: 2.0}, MUCH: {NARROW: 2.0, WIDE: 3.0}}, otherwise)
    table = read(tuning.table({1: apart, 2: alike, 4: alike, 8: apart}, 400), StripTile)

    def first(tokens: int, channels: int) -> StripTile:
        return next(fitting(table, tokens, channels, 3))

    for tokens, wide in (
        (1, MUCH),
        (2, LITTLE),
        (4, LITTLE),
        (8, MUCH),
    ):
        assert (first(tokens, 400), first(tokens, 401)) == (LITTLE, wide)
    assert len(table) == 5
