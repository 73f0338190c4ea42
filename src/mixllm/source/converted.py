"""Where conversions of GGUF files are kept: one directory a content, in the hub's cache, made once.

It is the place that huggingface_hub has for what a library makes of models, so a cache that was put on a
large disk (HF_HOME, HF_ASSETS_CACHE) takes these too. Whatever command comes next, and another copy of the
same file, finds them there. They may be removed while no command runs that reads one.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import transformers
from huggingface_hub import constants
from safetensors import SafetensorError

from mixllm.errors import MixllmError, one_line
from mixllm.files import full, sync_to_disk
from mixllm.human import size
from mixllm.lock import LOCK, locked, release
from mixllm.source.gguf import convert, converted_bytes, open_gguf
from mixllm.space import free_bytes

# Counted up when conversions that lie in users' caches must be made anew.
CONVERSION = 4
PARTIAL = ".partial"


def place_of(file: Path) -> Path:
    """Where the conversion of a GGUF file is, or would be: named by a SHA-256 of the file's bytes, of how
    they are converted, and of transformers' version, which converts them.

    Raises MixllmError where there is no such file or it can't be read.
    """
    if not file.is_file():
        raise MixllmError(f"{file}: no such file")
    try:
        with file.open("rb") as content:
            found = hashlib.file_digest(content, "sha256").hexdigest()
    except OSError as error:
        raise MixllmError(f"{file}: {error.strerror or error}") from None
    mark = hashlib.sha256(f"{found} {CONVERSION} {transformers.__version__}".encode()).hexdigest()
    return Path(constants.HF_ASSETS_CACHE).expanduser() / "mixllm" / mark[:20]


def converted(file: Path) -> Path:
    """The directory with the model of a GGUF file; made now, unless it was before.

    One process converts, others that want the same model wait for it. Raises MixllmError when the file is
    missing, damaged or of an unknown kind, and where the cache has no room or can't be written.
    """
    place = place_of(file)
    if place.is_dir():
        return place
    try:
        with _making(place) as part:
            if part is not None:
                opened = open_gguf(file)
                needed, free = converted_bytes(opened), free_bytes(part)
                if free < needed:
                    raise _not_there(file, place, f"{size(needed)} are needed, {size(free)} are free")
                convert(file, opened, part)
    except Exception as error:
        # A tokenizer that finds the disk full says so with an exception of no kind.
        said = full(error)
        if said is None and not isinstance(error, (OSError, SafetensorError)):
            raise
        said = said or getattr(error, "strerror", None) or one_line(error)
        raise _not_there(file, place, said) from None
    return place


def _not_there(file: Path, place: Path, reason: str) -> MixllmError:
    return MixllmError(
        f"{file}: its conversion cannot be written to {place} ({reason}); free some disk space or set "
        "HF_HOME to a directory on another disk"
    )


@contextmanager
def _making(place: Path) -> Iterator[Path | None]:
    """An empty directory to fill, which takes the name `place` when the context ends well; None where another
    process was quicker. Nothing stays otherwise, but what a killed process leaves until the next conversion.
    """
    part = place.with_name(place.name + PARTIAL)
    for left in place.parent.glob(f"*{PARTIAL}"):
        if left != part:
            # An error: a process is at work there, or it is another user's, of a cache that several share.
            with suppress(MixllmError, OSError), locked(left):
                shutil.rmtree(left, ignore_errors=True)
    with locked(part, wait=True):
        try:
            if place.is_dir():
                yield None
                shutil.rmtree(part)
                return
            for file in part.iterdir():
                if file.name != LOCK:
                    file.unlink()
            yield part
            for file in (*part.iterdir(), part):
                sync_to_disk(file)
            part.rename(place)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
        release(place)  # only now: until the name is gone nobody else may take the lock
        sync_to_disk(place.parent)
