"""A model by its name on the Hugging Face hub."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)

from mixllm.errors import MixllmError, one_line

NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")

# model*.safetensors leaves out second copies such as consolidated.safetensors.
FILES = ["model*.safetensors", "*.json", "*.jinja", "*.txt", "*.model", "LICENSE*", "NOTICE*", "README.md"]


def require_name(name: str) -> None:
    """Raise MixllmError where a model that is not here cannot be on the hub either."""
    if not NAME.fullmatch(name) or name.startswith("."):
        raise MixllmError(f"{name}: no such directory, and not a model's name on the hub")


def download(name: str) -> Path:
    """The local directory of hub model `name`, downloaded unless it is in the hub's cache.

    Raises MixllmError when there is no such model, it needs a login, or the hub cannot be reached.
    """
    with _told(name):
        return Path(snapshot_download(name, allow_patterns=FILES, ignore_patterns=["original/*", "onnx/*"]))


def require_there(name: str) -> None:
    """Raise MixllmError, as download() would, where the hub does not give the config of model `name`."""
    with _told(name):
        hf_hub_download(name, "config.json")


@contextmanager
def _told(name: str) -> Iterator[None]:
    require_name(name)
    try:
        yield
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise MixllmError(
            f"{name}: no such directory, and the hub did not give it: {_reason(error)}"
        ) from None


def _reason(error: Exception) -> str:
    """In a few words, where the library's are a paragraph."""
    if isinstance(error, GatedRepoError):
        return "it is gated; accept its terms there and log in (hf auth login)"
    if isinstance(error, RepositoryNotFoundError):
        return "there is none of this name, or it is private; look at the name, or log in (hf auth login)"
    if isinstance(error, LocalEntryNotFoundError):
        return "it cannot be reached, and its cache has no copy"
    return f"{type(error).__name__}: {one_line(error)}"
