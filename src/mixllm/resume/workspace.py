"""The directory beside OUT in which a run does its work, and which takes OUT's name when all is done.

.OUT.partial/
  .lock                  held by the run that is at work (see mixllm.lock)
  mixllm/run.json        whose work this is: an Identity
  .salience/             of a salience not yet measured whole (see mixllm.salience.kept)
  mixllm/salience.safetensors
  .spool/                rounded blocks (see mixllm.format.spool)
  model-00001-of-00004.safetensors ...
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from mixllm.errors import MixllmError
from mixllm.files import full, read_json, sweep, sync_to_disk, write_json
from mixllm.format.checkpoint import SPOOL
from mixllm.format.config import read_config
from mixllm.format.shards import find_shards
from mixllm.format.validate import validate_headers
from mixllm.lock import LOCK, locked, release
from mixllm.progress import Progress
from mixllm.records import LAYERS, RECORDS, RUN, SALIENCE
from mixllm.resume.identity import AFTER_SALIENCE, Identity, differences

Resume = Literal["auto", "require", "never"]
MEASURING = ".salience"
# Directories of what only the process at work needs start so.
SCRATCH = ".mixllm-"


def partial_of(out: Path) -> Path:
    """Where a run that makes `out` does its work."""
    place = _place(out)
    return place.with_name(f".{place.name}.partial")


def _place(out: Path) -> Path:
    """Where `out` is: what a link points to, on the disk that it was made for, and not the link."""
    return out.resolve() if out.is_symlink() else out


def finished(out: Path, identity: Identity) -> bool:
    """Whether `out` is the whole result of a run of this identity; headers are read, no tensors.

    Raises MixllmError where it was, and files have gone or were cut since.
    """
    if not (out / RUN).is_file() or differences(read_json(out / RUN), identity):
        return False
    try:
        validate_headers(find_shards(out), *read_config(out))
    except MixllmError as error:
        raise MixllmError(
            f"{out}: was finished, but is not whole any more ({error}); give --overwrite to make it anew"
        ) from None
    release(out)  # a process that died between taking the name and freeing the lock
    return True


@contextmanager
def workspace(out: Path, identity: Identity, resume: Resume, progress: Progress) -> Iterator[Path]:
    """The directory to work in, with all that an earlier run of the same identity has finished; it takes
    the name `out`, and the place of what had it, when the context ends well.

    After an error it stays if there is work in it. Raises MixllmError, one line, where another run is at
    work there, where the work there is another run's and `resume` is not "never", where there is none
    and `resume` is "require", and for a full disk.
    """
    partial = partial_of(out)
    try:
        with locked(partial):
            sweep(partial)
            for scratch in partial.glob(f"{SCRATCH}*"):
                shutil.rmtree(scratch)
            try:
                _admit(partial, identity, resume, progress)
                yield partial
            except BaseException:
                if not _work(partial):
                    shutil.rmtree(partial, ignore_errors=True)
                raise
            _publish(partial, _place(out))
    except Exception as error:
        if reason := full(error):
            raise MixllmError(f"{partial}: {reason}; free some disk space and run again") from None
        raise


def _admit(partial: Path, identity: Identity, resume: Resume, progress: Progress) -> None:
    """Leave in `partial` what this run may use, and put its identity there."""
    work = _work(partial)
    if work and resume != "never":
        other = differences(read_json(partial / RUN), identity)
        if not other.keys() <= (set() if _rounded(partial) else AFTER_SALIENCE):
            raise MixllmError(
                f"{partial}: {work} by another run ({next(iter(other.values()))}); give what that run was "
                "given to go on, or --resume never to start anew"
            )
        progress.note(f"{partial}: goes on where an earlier run stopped: {work}")
    elif resume == "require":
        raise MixllmError(f"{partial}: no work there to go on with; leave out --resume require to start")
    else:
        _clear(partial)
    (partial / RECORDS).mkdir(exist_ok=True)
    write_json(partial / RUN, identity)


def _work(partial: Path) -> str:
    """What is done there, as a person would say it; nothing of worth: ""."""
    if not (partial / RUN).is_file():
        return ""
    done = []
    if (partial / SALIENCE).is_file():
        done.append("salience measured")
    elif any((partial / MEASURING).glob("*.safetensors")):
        done.append("salience begun")
    if rounded := _rounded(partial):
        done.append(rounded)
    return ", ".join(done)


def _rounded(partial: Path) -> str:
    if (partial / LAYERS).is_file():
        return "all blocks rounded"
    blocks = len(list((partial / SPOOL).glob("*.safetensors")))
    return f"{blocks} block{'s' * (blocks > 1)} rounded" if blocks else ""


def _clear(partial: Path) -> None:
    """Remove all but the lock; first what says whose the rest is, so that a half of it counts as nothing."""
    (partial / RUN).unlink(missing_ok=True)
    for path in partial.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != LOCK:
            path.unlink()


def _publish(partial: Path, out: Path) -> None:
    shutil.rmtree(partial / MEASURING, ignore_errors=True)
    replaced = out.with_name(f".{out.name}.replaced")
    shutil.rmtree(replaced, ignore_errors=True)
    if out.exists():
        out.rename(replaced)
    partial.rename(out)
    # Only now: until the name is gone nobody else may take the lock.
    release(out)
    sync_to_disk(out.parent)
    shutil.rmtree(replaced, ignore_errors=True)
