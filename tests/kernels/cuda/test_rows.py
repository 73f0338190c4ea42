"""Tables of tiles by the sizes that they are for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mixllm.kernels.cuda import skinny, strips
from mixllm.kernels.cuda.rows import fitting, read, write
from mixllm.kernels.cuda.strips import StripTile

ROWS = [
    {"tokens": 3, "channels": 100, "bn": 8, "warps": 2, "slots": 4, "shared": 1000},
    {"tokens": 3, "bn": 8, "warps": 4, "slots": 4, "shared": 1000},
    {"tokens": 9, "channels": 100, "groups": 7, "bn": 16, "warps": 4, "slots": 8, "shared": 1000},
]


@pytest.mark.parametrize(
    ("sizes", "found"),
    [
        ((3, 100, 50), [0, 1]),
        ((1, 101, 50), [1]),
        ((4, 100, 7), [2]),
        ((3, 20, 7), [0, 1, 2]),
        ((4, 20, 8), []),
        ((10, 1, 1), []),
    ],
)
def test_limits_hold_what_they_name(sizes: tuple[int, int, int], found: list[int]) -> None:
    rows = read(ROWS, StripTile)
    assert list(fitting(rows, *sizes)) == [rows[i].tile for i in found]


@pytest.mark.parametrize("table", [skinny.TABLE, strips.TABLE], ids=["skinny", "strips"])
def test_a_committed_table_is_as_written(table: Path, tmp_path: Path) -> None:
    write(tmp_path / "again.json", json.loads(table.read_text()))
    assert (tmp_path / "again.json").read_text() == table.read_text()
