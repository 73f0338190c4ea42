"""Tables of tiles on disk: which sizes of a product each is for (benchmarks/tune.py writes them)."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Row(Generic[T]):
    """A tile and the most tokens, channels and groups of 128 inputs that it is for."""

    tokens: int
    channels: int
    groups: int
    tile: T


def read(rows: Iterable[dict[str, int]], tile: Callable[..., T]) -> tuple[Row[T], ...]:
    """Rows as a table's JSON has them: the tile's fields beside its limits; only that of tokens is a must."""

    def row(tokens: int, channels: int = sys.maxsize, groups: int = sys.maxsize, **fields: int) -> Row[T]:
        return Row(tokens, channels, groups, tile(**fields))

    return tuple(row(**fields) for fields in rows)


def fitting(rows: Iterable[Row[T]], tokens: int, channels: int, groups: int) -> Iterator[T]:
    """The tiles whose limits a product's sizes keep to, in the table's order."""
    for row in rows:
        if tokens <= row.tokens and channels <= row.channels and groups <= row.groups:
            yield row.tile


def write(path: Path, table: Any) -> None:
    """A table, lists of rows by name or by several names, a row a line."""
    path.write_text(_text(table, 0) + "\n")


def _text(table: Any, depth: int) -> str:
    pad = " " * (depth + 1)
    if isinstance(table, list):
        opened, lines, closed = "[", [pad + json.dumps(row) for row in table], "]"
    else:
        lines = [f"{pad}{json.dumps(name)}: {_text(rows, depth + 1)}" for name, rows in table.items()]
        opened, closed = "{", "}"
    return opened + "\n" + ",\n".join(lines) + "\n" + pad[1:] + closed
