"""What a measurement of salience keeps on disk while it lasts, so that one that was cut goes on.

    candidates-00012.safetensors   of the forward walk: what rounding would change in block 12
    gradient-00012.safetensors     of the backward walk: dLoss / d(states that enter block 12), one a batch
    scored-00012.safetensors       the salience of block 12 and all after it

The gradient is as large as the states of one boundary. So that writing it never costs more than a small
share of the time it saves, it is written now and then only; candidates stay until one covers their block.
"""

from __future__ import annotations

import time
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from mixllm.files import write_atomically
from mixllm.salience_file import Salience

# Of the backward walk's time, what goes to keeping gradients.
SHARE = 0.05


class SalienceWork:
    """Files in a directory that the caller makes and removes."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._cost, self._saved = 0.0, time.monotonic()

    def put_candidates(self, i: int, errors: dict[str, Tensor]) -> None:
        """Keep the candidates of block i. MixllmError when no space is left."""
        # Not fsynced: many, large and soon gone, and a file that a power cut shortened is made again.
        write_atomically(self._path("candidates", i), lambda file: save_file(errors, file), sync=False)

    def has_candidates(self, i: int) -> bool:
        """Whether what was kept of block i is there and whole."""
        try:
            with safe_open(self._path("candidates", i), framework="pt"):
                return True
        except (FileNotFoundError, SafetensorError):
            return False

    def candidates(self, i: int) -> dict[str, Tensor]:
        """What was kept of block i, on the CPU."""
        return load_file(self._path("candidates", i))

    def save(self, i: int, scored: Salience, gradients: list[Tensor]) -> None:
        """Keep that blocks i and later are scored, unless the last time was too short ago to pay.

        gradients: dLoss / d(states that enter block i) of every batch.
        """
        if SHARE * (time.monotonic() - self._saved) < self._cost:
            return
        began = time.monotonic()
        scored.save(self._path("scored", i))
        tensors = {f"{b:05}": gradient.cpu().contiguous() for b, gradient in enumerate(gradients)}
        write_atomically(self._path("gradient", i), lambda file: save_file(tensors, file))
        for file in self.directory.glob("*.safetensors"):
            if int(file.stem.rpartition("-")[2]) > i or file == self._path("candidates", i):
                file.unlink()
        self._saved = time.monotonic()
        self._cost = self._saved - began

    def load(self) -> tuple[int, Salience, Tensor] | None:
        """What save was given the last time; the gradient [samples, L, D] on the CPU. None: nothing."""
        done = sorted(self.directory.glob("gradient-*.safetensors"))
        if not done:
            return None
        i = int(done[0].stem.rpartition("-")[2])
        batches = load_file(done[0])
        gradient = torch.cat([batches[b] for b in sorted(batches)])
        return i, Salience.load(self._path("scored", i)), gradient

    def _path(self, what: str, i: int) -> Path:
        return self.directory / f"{what}-{i:05}.safetensors"
