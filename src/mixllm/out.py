"""Where a result may go: what is said of OUT before any work, by the run and by its dry run."""

from __future__ import annotations

from pathlib import Path

from mixllm.errors import MixllmError
from mixllm.files import at_home, require_utf8
from mixllm.records import RUN


def require_out(out: Path, model: str, *, overwrite: bool, resume: str) -> None:
    """Raise MixllmError where the result of quantizing `model` can't go to `out`.

    resume: unless it is "never", `out` may hold a result, which may be that of the same run.
    """
    if out.name in ("", ".."):
        raise MixllmError(f"{out}: has no name of its own; give the directory by its name")
    require_utf8(out)
    try:
        place = out.resolve()
    except (OSError, RuntimeError):  # Python 3.11 and 3.12 tell a circle so, later ones let it pass
        raise MixllmError(f"{out}: its links lead in a circle; give another name") from None
    if out.exists() and not out.is_dir():
        raise MixllmError(f"{out}: is no directory; give another name")
    source = at_home(model)
    if source.exists() and source.resolve().is_relative_to(place):
        raise MixllmError(f"{out}: the model itself is there and would be replaced; choose another directory")
    taken_is_fine = overwrite or (resume != "never" and (out / RUN).is_file())
    if out.exists() and any(out.iterdir()) and not taken_is_fine:
        raise MixllmError(f"{out}: exists and is not empty; choose another directory or give --overwrite")
    if out.is_mount():
        raise MixllmError(f"{out}: is a mount point, which cannot be replaced; give a directory in it")
