"""How much memory this process takes, on the host and on the GPU."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path
from typing import Any

import psutil

_STATUS = Path("/proc/self/status")
# Not what maps files: weights read from disk are the system's cache, which it takes back when it needs to.
_OWN = ("RssAnon", "RssShmem")


def host_bytes() -> int:
    """Of this process's own now; where the system does not tell that apart, with mapped files."""
    if _STATUS.exists():
        fields = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines())
        return sum(int(fields[name].split()[0]) * 1024 for name in _OWN)
    return int(psutil.Process().memory_info().rss)


def gpu_peak_bytes() -> int:
    """The most that tensors have taken at once so far on a GPU, of several the fullest; 0 where none is in
    use."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return 0
    return max(int(torch.cuda.max_memory_allocated(i)) for i in range(torch.cuda.device_count()))


def trim(device: Any, most: int = 0, coming: int = 0) -> None:
    """Where torch's allocator would hold more than `most` bytes of a GPU, have it give back what is free.

    Between phases of the work that take tensors of other sizes: what one phase leaves lies in pieces that the
    next cannot use. It waits for the device, and takes some hundredths of a second.
    coming: bytes of few large tensors that are next; where twice that is free they will find a place.
    """
    if device.type != "cuda":
        return
    cuda = sys.modules["torch"].cuda
    held = cuda.memory_reserved(device)
    if held + coming > most and (not coming or held - cuda.memory_allocated(device) < 2 * coming):
        # Itself it waits for the stream that the memory is of, and not for another that still works on it.
        cuda.synchronize(device)
        cuda.empty_cache()


def release(device: Any) -> None:
    """Have the allocator of the device give back all that is free: a GPU's to the driver, on a CPU malloc's,
    where it can (glibc), to the system. For phases of which one leaves holes that the next cannot use."""
    trim(device)
    if device.type == "cpu" and (give := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        give(0)


def grow_segments() -> None:
    """Have torch's allocator grow and shrink few large segments of GPU memory, where the environment says
    nothing of it: what is free between tensors can then go back page by page. Before torch is imported."""
    if not {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"} & os.environ.keys():
        os.environ["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"
