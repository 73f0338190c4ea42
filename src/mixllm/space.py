"""What a disk still takes: told, or required before the work begins."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from mixllm.errors import MixllmError
from mixllm.human import size


def free_bytes(path: Path) -> int:
    """What is free on the disk where `path` is, or would be made."""
    there = next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())
    return shutil.disk_usage(there).free


def require_space(directory: Path, needed: int) -> None:
    """Raise MixllmError unless the disk can take `needed` bytes in `directory`, less what is there."""
    there = _size(directory.rglob("*"))
    free = shutil.disk_usage(directory).free
    if free + there < needed:
        raise MixllmError(
            f"{directory}: {size(needed - there)} are needed, {size(free)} are free; "
            "free some disk space or choose another disk"
        )


def _size(files: Iterable[Path]) -> int:
    return sum(file.stat().st_size for file in files if file.is_file())
