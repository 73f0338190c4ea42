"""A model by its name on the Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

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
    require_name(name)
    try:
        return Path(snapshot_download(name, allow_patterns=FILES, ignore_patterns=["original/*", "onnx/*"]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise MixllmError(f"{name}: no such directory, and the hub did not give it ({reason})") from None
