"""What a measurement of salience keeps on disk of its backward walk, so that one that was cut goes on.

    gradient-00012.safetensors   dLoss / d(states that enter block 12), a tensor a batch
    scored-00012.safetensors     the salience of block 12 and all after it

The gradient is as large as the states of one boundary. So that writing it costs no more than a small share
of the time that it may save, it is written now and then only. States are not kept: a forward walk, of the
blocks that are left, is the cheap part.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Self

import torch
from safetensors.torch import load_file
from torch import Tensor

from mixllm.format.shards import save
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

        gradients: dLoss / d(states that enter block i) of every batch; on a CPU no one may change them
        later. Raises MixllmError when no space was left the time before.
        """
        if SHARE * (time.monotonic() - self._saved) < self._cost:
            return
        self.wait()
        # What waits for the device is done here; the disk is waited for beside the walk.
        copies = {f"{b:05}": g.cpu().contiguous() for b, g in enumerate(gradients)}
        self._writing = self._thread.submit(self._write, i, scored, copies)

    def _write(self, i: int, scored: Salience, gradients: dict[str, Tensor]) -> None:
        began = time.monotonic()
        scored.save(self._path("scored", i))
        # Written last: where it is, the other is.
        save(self._path("gradient", i), gradients)
        for file in self.directory.glob("*.safetensors"):
            if _block(file) > i:
                file.unlink()
        self._saved = time.monotonic()
        self._cost = self._saved - began

    def load(self) -> tuple[int, Salience, Tensor] | None:
        """What was written last of what save was given; the gradient [samples, L, D] on the CPU."""
        done = sorted(self.directory.glob("gradient-*.safetensors"))
        if not done:
            return None
        i = _block(done[0])
        batches = load_file(done[0])
        gradient = torch.cat([batches[b] for b in sorted(batches)])
        return i, Salience.load(self._path("scored", i)), gradient

    def _path(self, what: str, i: int) -> Path:
        return self.directory / f"{what}-{i:05}.safetensors"


def _block(file: Path) -> int:
    return int(file.stem.rpartition("-")[2])
