"""Where the command line writes: results to standard output, everything else to standard error."""

from __future__ import annotations

import io
import json
import os
import sys
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console

from mixllm.progress import Bars, Progress, Silent

GIGABYTE, MEGABYTE = 10**9, 10**6
_UNBOUNDED = 120


def stdout() -> Console:
    """For tables; as wide as they need where no terminal says otherwise."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else _UNBOUNDED)


def ready_streams() -> None:
    """Let nothing about the three standard streams end a run: closed ones become /dev/null, and what their
    encoding does not have is written, or read, as a question mark."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream: TextIO | None = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 (as long as we run)
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def progress(quiet: bool) -> Progress:
    return Silent() if quiet else Bars(Console(stderr=True, highlight=False))


def print_json(value: Any) -> None:
    """A dataclass or plain value as one JSON object."""
    plain = asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
    sys.stdout.write(json.dumps(plain, indent=2, default=_as_text) + "\n")


def size(count: float) -> str:
    """Bytes as a person says them: 98.1 MB, 4.9 GB."""
    return f"{count / GIGABYTE:.2f} GB" if count >= GIGABYTE else f"{count / MEGABYTE:.1f} MB"


def duration(seconds: float) -> str:
    """45 s, 7 min, 2 h 5 min."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def quiet_libraries(bars: bool = False) -> None:
    """Keep the libraries' advice and needless progress out of what a person reads.

    bars: leave the bars of downloads and conversions.
    """
    if not bars:
        os.environ["TQDM_DISABLE"] = "1"
    from transformers.utils import logging as untyped

    logging: Any = untyped
    logging.disable_progress_bar()
    logging.set_verbosity_error()


def _as_text(value: object) -> str:
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")
