"""Where the command line writes: results to standard output, everything else to standard error."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
from dataclasses import asdict, is_dataclass
from pathlib import Path
from textwrap import fill
from typing import Any, TextIO

from rich.console import Console

from mixllm.progress import Bars, Progress, Silent

# Columns of a table's line, and of text where no terminal says otherwise.
WIDTH = 120


def stdout() -> Console:
    """For tables; as wide as they need: a narrow terminal breaks lines, where rich would cut figures."""
    return _plain(width=WIDTH)


def _plain(**options: Any) -> Console:
    """Shows text as it is: a directory's name may hold what rich reads as markup ("out[w4]") or a picture."""
    return Console(highlight=False, markup=False, emoji=False, **options)


def print_text(console: Console, text: str) -> None:
    """A paragraph, filled to the terminal's width."""
    width = min(WIDTH, shutil.get_terminal_size((WIDTH, 0)).columns)
    console.print(fill(text, width=width, replace_whitespace=False))


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
    """On standard error, or, quiet, nowhere."""
    return Silent() if quiet else Bars(_plain(stderr=True))


def print_json(value: Any) -> None:
    """A dataclass or plain value as one JSON object; null for what is no finite number, since JSON has none
    for it."""
    plain = asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
    known = json.loads(json.dumps(plain, default=_as_text), parse_constant=lambda _: None)
    sys.stdout.write(json.dumps(known, indent=2) + "\n")


def quiet_libraries(bars: bool = False) -> None:
    """Keep the libraries' advice and needless progress out of what a person reads.

    bars: leave the bars of downloads and conversions, where there is a terminal to draw them on.
    """
    if not bars or not sys.stderr.isatty():
        os.environ["TQDM_DISABLE"] = "1"
    from huggingface_hub.utils import logging as untyped_hub
    from transformers.utils import logging as untyped

    hub: Any = untyped_hub
    hub.set_verbosity_error()  # an unreachable hub is tried again and again, and each time told
    logging: Any = untyped
    logging.disable_progress_bar()
    logging.set_verbosity_error()


def _as_text(value: object) -> str:
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")
