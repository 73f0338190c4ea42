"""What a measurement of salience keeps on disk of its backward walk, so that one that was cut goes on.

    gradient-00012.raw           dLoss / d(states that enter block 12), [samples, L, D] in row-major order
    gradient-00012.json          its dtype and shape; where it is, the other two are whole
    scored-00012.safetensors     the salience of block 12 and all after it

The gradient is as large as the states of one boundary: it goes to its file a batch at a time, so that the
host has no second one of it, and the disk is waited for beside the walk. So that this costs no more than a
small share of the time that it may save, it is done now and then only. States are not kept: a forward walk,
of the blocks that are left, is the cheap part.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from mixllm.errors import MixllmError
from mixllm.files import full, read_json, write_atomically, write_json
from mixllm.salience_file import Salience

# Of the backward walk's time, what goes to keeping gradients; until one was written, a disk is taken to write
# so many bytes a second.
SHARE, BYTES_A_SECOND = 0.05, 1e9


class Kept:
    """Files in a directory, made if it is not there; the caller removes it. size: bytes of a gradient.

    A context: at its end, what is being written is written.
    """

    def __init__(self, directory: Path, size: int) -> None:
        self.directory = directory
        directory.mkdir(exist_ok=True)
        self._cost, self._saved = size / BYTES_A_SECOND, time.monotonic()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="mixllm-keep")
        self._writing: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.wait()

    def wait(self) -> None:
        """Until nothing is being written. Raises MixllmError when no space was left."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def save(self, i: int, scored: Salience, gradients: Iterable[Tensor]) -> None:
        """Keep that blocks i and later are scored, unless the last time was too short ago to pay.

        gradients: dLoss / d(states that enter block i) [B, ...] of every batch. Raises MixllmError when no
        space was left, or not the time before.
        """
        if SHARE * (time.monotonic() - self._saved) < self._cost:
            return
        self.wait()
        began = time.monotonic()
        written, about = _write(self.directory / f".gradient-{i:05}.tmp", gradients)
        self._writing = self._thread.submit(self._finish, i, scored, written, about, began)

    def _finish(
        self, i: int, scored: Salience, written: Path, about: dict[str, object], began: float
    ) -> None:
        """Have the system bring what was written to the disk, and say last that it is there."""
        write_atomically(self._path("gradient", i, "raw"), lambda temporary: _rename(written, temporary))
        scored.save(self._path("scored", i, "safetensors"))
        write_json(self._path("gradient", i, "json"), about)
        for file in self.directory.glob("[gs]*"):
            if _block(file) > i:
                file.unlink()
        self._saved = time.monotonic()
        self._cost = self._saved - began

    def load(self) -> tuple[int, Salience, Tensor] | None:
        """What was written last of what save was given; the gradient [samples, L, D] on the CPU, as its file
        is mapped."""
        done = sorted(self.directory.glob("gradient-*.json"))
        if not done:
            return None
        i, about = _block(done[0]), read_json(done[0])
        shape, dtype = about["shape"], getattr(torch, about["dtype"])
        raw = str(self._path("gradient", i, "raw"))
        gradient = torch.from_file(raw, shared=False, size=math.prod(shape), dtype=dtype).view(shape)
        return i, Salience.load(self._path("scored", i, "safetensors")), gradient

    def _path(self, what: str, i: int, kind: str) -> Path:
        return self.directory / f"{what}-{i:05}.{kind}"


def _write(path: Path, gradients: Iterable[Tensor]) -> tuple[Path, dict[str, object]]:
    """Fill a file with batches [B, ...], one after the other; returns it, and dtype and shape of all."""
    rows = 0
    about: dict[str, object] = {}
    try:
        with path.open("wb") as file:
            for part in gradients:
                host = part.cpu().contiguous()
                file.write(host.view(-1).view(torch.uint8).numpy().data)
                rows += len(part)
                about = {"dtype": str(part.dtype).removeprefix("torch."), "shape": [rows, *part.shape[1:]]}
    except OSError as error:
        with suppress(OSError):
            path.unlink()
        raise MixllmError(
            f"{path}: {full(error) or error.strerror}; free some disk space and run again"
        ) from None
    return path, about


def _rename(written: Path, name: Path) -> None:
    written.replace(name)


def _block(file: Path) -> int:
    return int(file.stem.rpartition("-")[2])
