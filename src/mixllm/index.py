"""The index of a model that lies in several safetensors files: which of them holds which tensor."""

from __future__ import annotations

from pathlib import Path

from mixllm.errors import MixllmError
from mixllm.files import read_json

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def read_index(index: Path) -> dict[str, Path]:
    """The file of each tensor, by the tensor's name, in the order of the JSON.

    Raises MixllmError for what is no index, and for a file that is not beside it: an index comes with a model
    from anywhere, and may name none of the user's other files.
    """
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(file, str) for file in names.values()):
        raise MixllmError(f"{index}: no weight_map in it that gives each tensor a file; download it again")
    for file in dict.fromkeys(names.values()):
        if Path(file).name != file:
            raise MixllmError(f"{index}: {file!r} is not the name of a file beside it")
    return {name: index.with_name(file) for name, file in names.items()}
