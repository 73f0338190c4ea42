"""Pinned buffers of host memory, which copies to and from a GPU pass beside the computation."""

from __future__ import annotations

import mmap
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import torch
from torch import Tensor

# Threads that ask the system for a buffer's memory, page by page.
TOUCHING, PAGE = 8, 4096


def pin(buffer: Tensor) -> None:
    """Registered rather than allocated pinned: torch's own pinned memory comes in powers of two."""
    torch.cuda.check_error(torch.cuda.cudart().cudaHostRegister(buffer.data_ptr(), buffer.nbytes, 0))


def unpin(buffer: Tensor) -> None:
    """Undo pin, where no copy from or to the buffer is on its way."""
    torch.cuda.check_error(torch.cuda.cudart().cudaHostUnregister(buffer.data_ptr()))


class Pinned:
    """Buffers, uint8 [size], that are used again; they keep to `most` bytes while what is in use does.

    pin, unpin: called with each buffer when it is made and before it goes.
    """

    def __init__(self, most: int, pin: Callable[[Tensor], None], unpin: Callable[[Tensor], None]) -> None:
        self._most, self._pin, self._unpin = most, pin, unpin
        self._all: dict[int, Tensor] = {}
        self._spare: list[Tensor] = []
        self._threads = ThreadPoolExecutor(TOUCHING, thread_name_prefix="mixllm-touch")

    @property
    def bytes(self) -> int:
        """Of all buffers that are there."""
        return sum(buffer.nbytes for buffer in self._all.values())

    def take(self, size: int) -> Tensor:
        """A buffer of so many bytes: the least spare one that holds them, or a new one."""
        if fits := [number for number, spare in enumerate(self._spare) if spare.nbytes >= size]:
            return self._spare.pop(min(fits, key=lambda number: self._spare[number].nbytes))[:size]
        while self._spare and self.bytes + size > self._most:
            self._drop(self._spare.pop())
        buffer = allocate(size)
        self._touch(buffer)
        self._pin(buffer)
        self._all[buffer.data_ptr()] = buffer
        return buffer

    def give_back(self, buffer: Tensor) -> None:
        """One that was taken is free again; views of it share its start."""
        self._spare.append(self._all[buffer.data_ptr()])

    def close(self) -> None:
        """All are gone, those in use too."""
        self._threads.shutdown()
        self._spare.clear()
        for buffer in list(self._all.values()):
            self._drop(buffer)

    def _drop(self, buffer: Tensor) -> None:
        self._unpin(buffer)
        del self._all[buffer.data_ptr()]

    def _touch(self, buffer: Tensor) -> None:
        """Have the system give the buffer its memory, by several threads; pinning would do it by one."""
        list(self._threads.map(Tensor.zero_, buffer[::PAGE].chunk(TOUCHING)))


def allocate(size: int) -> Tensor:
    """Bytes of the host's memory that lie in large pages where the system has some: pinned in a few steps."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(size, dtype=torch.uint8)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a system that was built without them
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8)
