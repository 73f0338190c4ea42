"""No model with tensors that transformers made up: what files lack it fills with random numbers, and says so
in a warning alone."""

from __future__ import annotations

from collections.abc import Iterable

from mixllm.errors import MixllmError


def require_all(missing: Iterable[str], where: str) -> None:
    """Raise MixllmError where from_pretrained() found these tensors missing from the model in `where`."""
    if names := sorted(missing):
        raise MixllmError(f"{where}: tensor {names[0]}: missing; the model is not whole, download it again")
