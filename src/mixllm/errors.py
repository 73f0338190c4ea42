"""What ends a program with one line instead of a traceback."""

from __future__ import annotations


class MixllmError(Exception):
    """A mistake in what the user gave: one line that says what is wrong, where, and what to do.

    The command line prints the message alone and exits with code 2; library callers catch it.
    """


def one_line(error: BaseException) -> str:
    """A library's message, cut to fit a one-line error; the error's name where it has none."""
    return " ".join(str(error).split())[:300] or type(error).__name__


class Interrupted(Exception):
    """Ctrl-C, where there is more to say of it: one line that says how to go on; exit code 130."""
