"""The next block's weights, read from disk and brought to the device while this block works."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait

import torch
from torch import Tensor

Tensors = dict[str, Tensor]


class ReadAhead:
    """read: a block's number -> its tensors on the device.

    One thread reads, on a GPU on a stream of its own, so the disk, the copy and the computation overlap
    and two blocks' weights are there at once, never three.
    """

    def __init__(self, read: Callable[[int], Tensors], device: torch.device) -> None:
        self._read, self._device = read, device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="mixllm-read")
        self._coming: tuple[int, Future[Tensors]] | None = None

    def start(self, i: int) -> None:
        """Begin to read block i, in the place of whatever was begun before."""
        if self._stream is not None:
            # The memory of blocks dropped so far may be taken; what still reads it is queued before this.
            self._stream.wait_stream(torch.cuda.current_stream(self._device))
        self._coming = i, self._thread.submit(self._run, i)

    def take(self, i: int) -> Tensors:
        """Block i's tensors, ready for work that is queued from now on. Raises what reading raised."""
        if self._coming is None or self._coming[0] != i:
            self._coming = None
            return self._read(i)
        coming, self._coming = self._coming[1], None
        tensors = coming.result()
        if self._stream is not None:
            torch.cuda.current_stream(self._device).wait_stream(self._stream)
        return tensors

    def settle(self) -> None:
        """Wait until nothing is being read. Before a block is dropped: its memory is of this stream, and what
        is being read would take it at once, while work that is queued still reads the block's weights."""
        if self._coming is not None:
            wait([self._coming[1]])

    def _run(self, i: int) -> Tensors:
        with torch.no_grad(), torch.cuda.stream(self._stream):
            return self._read(i)
