"""What a run takes of the machine, by stage: seconds, GPU and host memory, GPU utilisation, disk traffic."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from mixllm.progress import Stage

HOST_EVERY = 0.02
GPU_EVERY_MS = 100


class Watching:
    """A Progress that measures its stages; also `with watching.stage(name, 0)` around anything else.

    stages: name -> seconds, gpu_allocated and gpu_reserved (bytes at their peak, torch's own), gpu_busy
    (percent of samples with a kernel running, nvidia-smi's), host (bytes at their peak that are not page
    cache), read and written (bytes that reached the disk).
    """

    def __init__(self) -> None:
        self.stages: dict[str, dict[str, float]] = {}
        self._gpu = torch.cuda.is_available()
        self._host_peak = 0
        self._busy: list[float] = []
        self._stop = threading.Event()

    @contextmanager
    def running(self) -> Iterator[None]:
        threads = [threading.Thread(target=self._watch_host, daemon=True)]
        smi = None
        if self._gpu:
            command = [
                *("nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"),
                *("-i", f"GPU-{torch.cuda.get_device_properties().uuid}", f"-lms={GPU_EVERY_MS}"),
            ]
            smi = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            threads.append(threading.Thread(target=self._watch_gpu, args=(smi,), daemon=True))
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            if smi is not None:
                smi.kill()
            for thread in threads:
                thread.join()

    @contextmanager
    def stage(self, name: str, total: int, blocks: int = 0) -> Iterator[Stage]:
        if self._gpu:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        self._host_peak, self._busy = host_bytes(), []
        disk, began = disk_bytes(), time.perf_counter()
        yield _Quiet()
        if self._gpu:
            torch.cuda.synchronize()
        read, written = (now - then for now, then in zip(disk_bytes(), disk, strict=True))
        self.stages[name] = {
            "seconds": round(time.perf_counter() - began, 3),
            "gpu_allocated": torch.cuda.max_memory_allocated() if self._gpu else 0,
            "gpu_reserved": torch.cuda.max_memory_reserved() if self._gpu else 0,
            "gpu_busy": round(sum(self._busy) / max(1, len(self._busy)), 1),
            "host": self._host_peak,
            "read": read,
            "written": written,
        }
        print(f"  {name}: {self.stages[name]}", flush=True)

    def note(self, message: str) -> None:
        print(message, flush=True)

    def peak(self, key: str) -> float:
        return max(stage[key] for stage in self.stages.values())

    def _watch_host(self) -> None:
        while not self._stop.wait(HOST_EVERY):
            self._host_peak = max(self._host_peak, host_bytes())

    def _watch_gpu(self, smi: Any) -> None:
        for line in smi.stdout:
            self._busy.append(float(line.split()[0]))


class _Quiet:
    def advance(self, steps: int = 1) -> None:
        pass


def host_bytes() -> int:
    """This process's memory that is no page cache: anonymous and shared pages, pinned ones among them."""
    return sum(_kilobytes("status", key) for key in ("RssAnon", "RssShmem")) * 1024


def disk_bytes() -> tuple[int, int]:
    """Bytes read from and written to storage by this process so far."""
    lines = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(lines["read_bytes"]), int(lines["write_bytes"])


def _kilobytes(file: str, key: str) -> int:
    for line in Path(f"/proc/self/{file}").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1])
    raise KeyError(key)
