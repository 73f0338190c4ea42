"""Tensors that end where a page ends, before one that may not be touched."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

PROT_NONE, PROT_BOTH = 0, mmap.PROT_READ | mmap.PROT_WRITE


@contextmanager
def guarded(tensors: list[Tensor]) -> Iterator[list[Tensor]]:
    """Copies of contiguous tensors; an access past the end of one kills the process."""
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    protect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    copies, guards = [], []
    for tensor in tensors:
        room = -(-tensor.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
        memory = mmap.mmap(-1, room + mmap.PAGESIZE)
        view = torch.frombuffer(memory, dtype=torch.uint8)
        copy = view[room - tensor.nbytes : room].view(tensor.dtype).view(tensor.shape)
        copies.append(copy.copy_(tensor))
        guards.append(view.data_ptr() + room)
        assert protect(guards[-1], mmap.PAGESIZE, PROT_NONE) == 0
    try:
        yield copies
    finally:
        for guard in guards:
            protect(guard, mmap.PAGESIZE, PROT_BOTH)
