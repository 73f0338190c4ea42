"""Files that are whole or not there: temporary name, fsync, rename."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from mixllm.errors import MixllmError

_TEMPORARY = ".tmp"
_FULL = {
    errno.ENOSPC: "no space left",
    errno.EDQUOT: "no space left in the quota",
    errno.EFBIG: "larger than a file may be here",
}


def at_home(path: str | PathLike[str]) -> Path:
    """The path with a leading ~ as a shell reads it, and as it is where there is no such user."""
    return Path(os.path.expanduser(path))  # Path's own raises for such a user


def require_utf8(path: Path) -> None:
    """Raise MixllmError for a name that safetensors, which takes UTF-8 alone, would not open."""
    try:
        os.fsencode(path).decode("utf-8")
    except UnicodeDecodeError:
        raise MixllmError(f"{path}: the name is not UTF-8, so safetensors can't open it; rename it") from None


def require_link(path: Path) -> None:
    """Raise MixllmError for a symbolic link to what is not there, which is no name on the hub either."""
    if path.is_symlink() and not path.exists():
        raise MixllmError(f"{path}: is a link to {os.readlink(path)}, where nothing is; mend the link")


def require_place(path: Path) -> None:
    """Raise MixllmError where no file of this name can be: to say so before what it takes to fill it."""
    if path.is_dir():
        raise MixllmError(f"{path}: is a directory; give the name of a file")
    if not path.parent.is_dir():
        raise MixllmError(f"{path.parent}: no such directory; make it first")
    if not os.access(path.parent, os.W_OK):
        raise MixllmError(f"{path.parent}: not yours to write in; give another place")


def temporary_of(path: Path) -> Path:
    """Where this process fills a file before it has its name; what is left there is found by sweep()."""
    return path.with_name(f".{path.name}.{os.getpid()}{_TEMPORARY}")


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Have `write` fill a temporary file beside `path`, then give it that name.

    A reader sees the old file, the new one or none, whatever interrupts: the temporary file is fsynced
    before the rename and removed on any error, Ctrl-C included; what a killed process leaves is found by
    sweep(). Raises MixllmError when no space is left, and as require_place().
    """
    require_place(path)
    temporary = temporary_of(path)
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        write(temporary)
        temporary.chmod(mode)  # safetensors replaces the file by one that only its owner may read
        sync_to_disk(temporary)
        temporary.replace(path)
        sync_to_disk(path.parent)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if reason := full(error):
            raise MixllmError(f"{path}: {reason}; free some disk space and run again") from None
        raise


@contextmanager
def write_directory(path: Path) -> Iterator[Path]:
    """A new directory beside `path`, to put files in; it gets that name when the context ends well.

    Otherwise nothing of it stays, but what a killed process leaves. Raises OSError where `path` is a file or
    holds something by then.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = Path(mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        yield part
        part.chmod(0o755)  # made for its owner alone
        for written in (*part.iterdir(), part):
            sync_to_disk(written)
        part.rename(path)
        sync_to_disk(path.parent)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def sweep(directory: Path) -> None:
    """Remove the temporary files that killed processes left in a directory and those below it."""
    # Ours end so; safetensors (0.8), which writes a file of its own beside the one it is given, begins so.
    for pattern in (f".*{_TEMPORARY}", f"{_TEMPORARY}*"):
        for file in directory.rglob(pattern):
            file.unlink()


def write_json(path: Path, data: Any) -> None:
    """Write data as indented JSON, atomically; keys keep their order."""
    write_text(path, json.dumps(data, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text, atomically."""
    write_atomically(path, lambda temporary: _write_text(temporary, text))


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises MixllmError if it can't be read or holds anything else."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise MixllmError(f"{path}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise MixllmError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(data, dict):
        raise MixllmError(f"{path}: holds a JSON {type(data).__name__}, not an object")
    return data


def _write_text(path: Path, text: str) -> None:
    # A file's name that is no UTF-8 has characters that UTF-8 has not; so escaped, JSON gives it back.
    path.write_text(text, encoding="utf-8", errors="backslashreplace")


def sync_to_disk(path: Path) -> None:
    """Return once a file, or the names in a directory, would outlive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def full(error: BaseException) -> str | None:
    """What an error says of a disk that takes no more; None if it says nothing of the kind."""
    if isinstance(error, OSError):
        return _FULL.get(error.errno or 0)
    # safetensors reports what the system said only as text.
    return next((reason for code, reason in _FULL.items() if f"(os error {code})" in str(error)), None)
