"""What a run's work depends on: the model, the calibration tokens, the settings and the versions.

Work of one identity is never mixed with that of another. A file's name, place and time are no part of
it, so a model may be moved, copied or downloaded again between two runs.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mixllm.config import QuantConfig
from mixllm.placement import versions

# One flat JSON object: an option, a package or a digest by its name.
Identity = dict[str, Any]

# What only the choice and the rounding depend on: a salience measured before a change of these still holds.
AFTER_SALIENCE = {
    "bits", "channels", "scope", "seed", "rounding", "clip_by", "sweeps", "tune", "tune_codes",
    "tune_samples", "tuning", "shard_size",
}  # fmt: skip
# Read of every tensor, in two places; what changes a weight in training changes every part of it.
SAMPLE = 4096


def identify(
    model: Path,
    ids: Tensor,
    config: QuantConfig,
    device: torch.device,
    dtype: torch.dtype,
    *,
    tuning: Tensor | None = None,
    shard_size: int,
    files: Mapping[str, str | Path | None],
) -> Identity:
    """The identity of a run.

    model: directory with config.json and safetensors; ids: int64 [samples, window], the calibration
    tokens; tuning: the tokens that tuning sees, where they are others; files: by "plan" and "salience", those
    to be used instead of choosing and measuring.
    """
    settings = config.model_dump(mode="json", exclude={"format", "calibration", "tune_text"})
    return {
        **versions(),
        "device": device.type,
        "dtype": str(dtype).removeprefix("torch."),
        **config.format.model_dump(),
        **settings,
        "shard_size": shard_size,
        "model": model_digest(model),
        "calibration": tensor_digest(ids),
        "tuning": None if tuning is None else tensor_digest(tuning),
        **{name: None if file is None else _sha256(Path(file).read_bytes()) for name, file in files.items()},
    }


def differences(old: Identity, new: Identity) -> dict[str, str]:
    """What differs, by name, and how a person would say it; plain settings come before digests."""
    return {
        name: f"{name} differs" if name in _DIGESTS else f"{name} was {old.get(name)}, not {new.get(name)}"
        for name in {**new, **old}
        if old.get(name) != new.get(name)
    }


_DIGESTS = {"model", "calibration", "tuning", "plan", "salience"}


def model_digest(path: Path) -> str:
    """Of config.json, of every safetensors file's name, size and header, and of samples of every tensor.

    Samples: small tensors whole, of others 4 KiB from the middle and the last 4 KiB. So 140 GB take a few
    seconds where a hash of everything takes minutes. What it can't see is an edit of a few values inside
    one tensor, made without changing anything else.
    """
    digest = hashlib.sha256((path / "config.json").read_bytes())
    for file in sorted(path.glob("*.safetensors")):
        _add_file(digest, file)
    return digest.hexdigest()


def tensor_digest(tensor: Tensor) -> str:
    """Of the values and the shape."""
    return _sha256(str(list(tensor.shape)).encode() + tensor.numpy().tobytes())


def _add_file(digest: Any, file: Path) -> None:
    with file.open("rb") as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(0)
        length = stream.read(8)
        header = stream.read(int.from_bytes(length, "little"))
        digest.update(f"{file.name} {size} ".encode() + header)
        data = stream.tell()
        tensors = {name: entry for name, entry in json.loads(header).items() if name != "__metadata__"}
        for begin, end in sorted(entry["data_offsets"] for entry in tensors.values()):
            whole = end - begin <= 2 * SAMPLE
            for start in (begin,) if whole else ((begin + end) // 2, end - SAMPLE):
                stream.seek(data + start)
                digest.update(stream.read(end - begin if whole else SAMPLE))


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
