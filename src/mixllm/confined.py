"""What a container leaves of the host's memory: its control group's bound, which the system does not count in
what it calls available; a process that goes beyond it is killed.

Version 2 of control groups has one tree, version 1 one for memory (Linux: admin-guide/cgroup-v2.rst,
cgroup-v1/memory.rst). Each group above a process bounds it too; inside a container the tree often begins at
the container's own group, whatever /proc says of the path.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MEMBERSHIP, TREE = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Bound:
    """Bytes: total, what a group's processes may have together; free, what is left, page cache counted in."""

    total: int
    free: int


@dataclass(frozen=True)
class _Kind:
    """What a version's files are called: the bound, what is taken, and the page cache in memory.stat."""

    bound: str
    taken: str
    cache: tuple[str, ...]


_V2 = _Kind("memory.max", "memory.current", ("active_file", "inactive_file"))
_V1 = _Kind("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_active_file", "total_inactive_file"))


def bounds() -> list[Bound]:
    """Of this process's group and those above it that have one; none on other systems."""
    return [bound for directory, kind in _groups() if (bound := _bound(directory, kind)) is not None]


def _groups() -> Iterator[tuple[Path, _Kind]]:
    if not MEMBERSHIP.is_file():
        return
    for line in MEMBERSHIP.read_text().splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0":
            top, kind = TREE, _V2
        elif "memory" in controllers.split(","):
            top, kind = TREE / "memory", _V1
        else:
            continue
        own = top / path.lstrip("/")
        for directory in (own, *own.parents):
            if directory.is_relative_to(top):
                yield directory, kind


def _bound(directory: Path, kind: _Kind) -> Bound | None:
    try:
        total = (directory / kind.bound).read_text().strip()
        taken = int((directory / kind.taken).read_text())
        stat = dict(line.split(" ", 1) for line in (directory / "memory.stat").read_text().splitlines())
    except OSError:  # not there, or not for this process to read
        return None
    if total == "max":
        return None
    cache = sum(int(stat.get(name, 0)) for name in kind.cache)
    return Bound(int(total), max(0, int(total) - taken + cache))
