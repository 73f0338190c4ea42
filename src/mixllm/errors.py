"""What ends a program with one line instead of a traceback."""

from __future__ import annotations


class MixllmError(Exception):
    """A mistake in what the user gave: one line that says what is wrong, where, and what to do.

    The command line prints the message alone and exits with code 2; library callers catch it.
    """


class Interrupted(Exception):
    """Ctrl-C, where there is more to say of it: one line that says how to go on; exit code 130."""
