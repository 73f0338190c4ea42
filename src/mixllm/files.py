"""Files that are whole or not there: temporary name, fsync, rename."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mixllm.errors import MixllmError


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Have `write` fill a temporary file beside `path`, then give it that name.

    A reader sees the old file, the new one or none, whatever interrupts: the temporary file is fsynced
    before the rename and removed on any error, Ctrl-C included. Raises MixllmError when no space is left.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        write(temporary)
        temporary.chmod(mode)  # safetensors replaces the file by one that only its owner may read
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if _is_full(error):
            raise MixllmError(f"{path}: no space left; free some disk space and run again") from None
        raise


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
    path.write_text(text, encoding="utf-8")


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _is_full(error: BaseException) -> bool:
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    # safetensors reports what the system said only as text.
    return any(f"os error {code}" in str(error) for code in (errno.ENOSPC, errno.EDQUOT))
