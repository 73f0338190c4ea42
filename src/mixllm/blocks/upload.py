"""Copies from mapped files to a GPU, by several threads.

A copy from memory that is not pinned goes through the driver's own small buffer on one core, which also takes
the page faults of a file that is mapped. Here several threads each copy a piece into a pinned buffer and send
it off from there.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from queue import SimpleQueue

import numpy as np
import torch
from torch import Tensor

from mixllm.torchrun import here

# A thread's buffers are two, so that one is filled while the other is on its way.
PIECE, MOST_THREADS = 2**23, 8
STAGED = PIECE * MOST_THREADS * 2


class Upload:
    """upload(tensor): a copy of a contiguous CPU tensor on the device, for work that is queued from then on
    on the calling thread's stream."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        threads = max(1, min(MOST_THREADS, (os.cpu_count() or 1) // here()))
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="mixllm-upload")
        self._free: SimpleQueue[tuple[Tensor, torch.cuda.Event]] = SimpleQueue()
        for _ in range(2 * threads):
            buffer = torch.empty(PIECE, dtype=torch.uint8, pin_memory=True)
            self._free.put((buffer, torch.cuda.Event()))

    def __call__(self, tensor: Tensor) -> Tensor:
        found = torch.empty(tensor.shape, dtype=tensor.dtype, device=self._device)
        stream = torch.cuda.current_stream(self._device)
        pieces = zip(*(t.reshape(-1).view(torch.uint8).split(PIECE) for t in (tensor, found)), strict=True)
        for done in [self._threads.submit(partial(self._copy, stream), *piece) for piece in pieces]:
            done.result()
        return found

    def _copy(self, stream: torch.cuda.Stream, source: Tensor, target: Tensor) -> None:
        buffer, left = self._free.get()
        left.synchronize()
        part = buffer[: len(source)]
        # numpy's copy, unlike torch's, takes one thread whatever OpenMP is set to.
        np.copyto(part.numpy(), source.numpy())
        with torch.cuda.stream(stream):
            target.copy_(part, non_blocking=True)
            left.record(stream)
        self._free.put((buffer, left))
