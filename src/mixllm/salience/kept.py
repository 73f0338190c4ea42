"""What a measurement of salience keeps on disk of its backward walk, so that one that was cut goes on.

    gradient-00012.raw           dLoss / d(states that enter block 12), [samples, L, D] in row-major order
    gradient-00012.json          its dtype and shape; where it is, the other two are whole
    scored-00012.safetensors     the salience of block 12 and all after it

The gradient is as large as the states of one boundary. It goes to its file a batch at a time, beside the walk
that takes the same batches one after the other, so that neither host nor GPU has a second one of it for long.
So that this costs no more than a small share of the time that it may save, it is done now and then only.
States are not kept: a forward walk, of the blocks that are left, is the cheap part.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from mixllm.files import read_json, write_atomically, write_json
from mixllm.plan import Salience

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

        gradients: dLoss / d(states that enter block i) [B, ...] of every batch; no one may change them later.
        Raises MixllmError when no space was left the time before.
        """
        if SHARE * (time.monotonic() - self._saved) < self._cost:
            return
        self.wait()
        parts = list(gradients)
        stream = None
        if parts[0].is_cuda:
            stream = torch.cuda.Stream(parts[0].device)
            stream.wait_stream(torch.cuda.current_stream(parts[0].device))
        self._writing = self._thread.submit(self._write, i, scored, parts, stream)

    def _write(self, i: int, scored: Salience, parts: list[Tensor], stream: torch.cuda.Stream | None) -> None:
        began = time.monotonic()
        size = sum(len(part) for part in parts)
        about = {"dtype": str(parts[0].dtype).removeprefix("torch."), "shape": [size, *parts[0].shape[1:]]}
        with torch.cuda.stream(stream):
            write_atomically(self._path("gradient", i, "raw"), partial(_fill, parts))
        scored.save(self._path("scored", i, "safetensors"))
        # Where this is, the others are.
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


def _fill(parts: list[Tensor], path: Path) -> None:
    """Write tensors one after the other, each let go as it is written."""
    with path.open("wb") as file:
        while parts:
            file.write(parts.pop(0).cpu().contiguous().view(-1).view(torch.uint8).numpy().data)


def _block(file: Path) -> int:
    return int(file.stem.rpartition("-")[2])
