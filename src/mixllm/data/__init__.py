"""Text, for calibration and for measuring: from files, the hub or Python's own library to token windows."""

from __future__ import annotations

from mixllm.data.cut import windows
from mixllm.data.read import load_text, require_text

__all__ = ["load_text", "require_text", "windows"]
