"""What a user's mistake has to be told as."""

from __future__ import annotations

from typing import Any

import pytest

from mixllm.errors import MixllmError


def says(message: str) -> Any:
    """A MixllmError of one line that holds this text, a pattern."""
    return pytest.raises(MixllmError, match=rf"\A[^\n]*{message}[^\n]*\Z")
