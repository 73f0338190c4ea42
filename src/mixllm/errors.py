"""The one kind of error that is the user's to mend."""

from __future__ import annotations


class MixllmError(Exception):
    """A mistake in what the user gave: one line that says what is wrong, where, and what to do.

    The command line prints the message alone and exits with code 2; library callers catch it.
    """
