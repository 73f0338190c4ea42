"""A lock on a directory: one process writes there, and whatever ends that process frees it."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mixllm.errors import MixllmError

LOCK = ".lock"


@contextmanager
def locked(directory: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold `directory`, made if it is not there. While another process does, wait, or raise MixllmError; and
    where its file system knows no locks.

    The system drops the lock with the process, also on a network file system that knows locks, so there
    is never a stale one. The file stays until release().
    """
    while True:
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except FileNotFoundError:  # in /proc, or where the working directory is gone
            raise MixllmError(f"{directory}: no directory can be made there; choose another place") from None
        file = directory / LOCK
        try:
            handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:
            continue  # the holder before has taken the directory away just now
        try:
            _take(handle, directory, wait)
        except BaseException:
            os.close(handle)
            raise
        if _same(handle, file):
            break
        os.close(handle)  # the holder before has finished and taken the directory's name away
    try:
        os.ftruncate(handle, 0)
        os.write(handle, f"{os.getpid()}\n".encode())
        yield
    finally:
        os.close(handle)


def release(directory: Path) -> None:
    """Remove the lock's file from a directory that has taken its final name."""
    (directory / LOCK).unlink(missing_ok=True)


def _take(handle: int, directory: Path, wait: bool) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        holder = os.read(handle, 100).decode(errors="replace").strip() or "unknown"
        raise MixllmError(
            f"{directory}: another run writes there (process {holder}); wait for it or choose another OUT"
        ) from None
    except OSError as error:  # a network file system without locks
        raise MixllmError(
            f"{directory}: cannot be locked ({error.strerror}); choose a place on another file system"
        ) from None


def _same(handle: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), file.stat())
    except FileNotFoundError:
        return False
