"""A safetensors file before its tensors are there: what it begins with, and where each of them goes."""

from __future__ import annotations

import json
from collections.abc import Mapping

from mixllm.format.split import Stored

# The order in which safetensors' own writer puts tensors, by dtype and then by name.
ORDER = ("I64", "F64", "F32", "I32", "BF16", "F16", "I16", "F8_E4M3", "F8_E5M2", "I8", "U8", "BOOL")


def layout(tensors: Mapping[str, Stored]) -> tuple[bytes, dict[str, int]]:
    """The first bytes of the file that safetensors' save_file makes of such tensors, and the place of each
    tensor's first byte. All dtypes must be in ORDER."""
    names = sorted(tensors, key=lambda name: (ORDER.index(tensors[name].dtype), name))
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    starts, stop = {}, 0
    for name in names:
        starts[name], stop = stop, stop + tensors[name].bytes
        dtype, shape = tensors[name].dtype, list(tensors[name].shape)
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [starts[name], stop]}
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # data starts at a multiple of 8
    header = len(text).to_bytes(8, "little") + text
    return header, {name: len(header) + start for name, start in starts.items()}
