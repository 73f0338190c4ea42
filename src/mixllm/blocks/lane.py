"""Copies of states between a device and the host, beside the computation."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mixllm.blocks.pinned import Pinned, pin, unpin

# Tensors that work is queued for on a GPU beyond the one it works on: enough to never wait for a launch.
AHEAD = 2


@dataclass
class Part:
    """A tensor's place: held on the device, in a buffer of the host or in a file."""

    where: str
    bytes: int
    dtype: torch.dtype
    shape: torch.Size
    held: Tensor | Path | None


@dataclass
class _Coming:
    tensor: Tensor
    event: torch.cuda.Event | None

    def ready(self) -> Tensor:
        """The tensor, for work that is queued from now on."""
        if self.event is not None:
            here = torch.cuda.current_stream(self.tensor.device)
            here.wait_event(self.event)
            # Its memory belongs to the copying stream, which must not reuse it before this one is done.
            self.tensor.record_stream(here)
        return self.tensor


class Lane:
    """Copies between device and host on a stream of their own."""

    def __init__(self, device: torch.device, host: int) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._pinned = Pinned(host, pin, self._unpin)
        self._queued: deque[torch.cuda.Event] = deque()

    def close(self) -> None:
        if self._stream is not None:
            self._stream.synchronize()
        self._pinned.close()

    def away(self, tensor: Tensor) -> Tensor:
        """A copy in pinned host memory, whole once the stream has come so far."""
        assert self._stream is not None
        buffer = self._pinned.take(tensor.nbytes).view(tensor.dtype).view(tensor.shape)
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            buffer.copy_(tensor, non_blocking=True)
        tensor.record_stream(self._stream)
        return buffer

    def back(self, part: Part) -> _Coming:
        if part.where == "device":
            assert isinstance(part.held, Tensor)
            return _Coming(part.held, None)
        if isinstance(part.held, Path):
            count = part.shape.numel()
            held = torch.from_file(str(part.held), shared=False, size=count, dtype=part.dtype).view(
                part.shape
            )
        else:
            assert part.held is not None
            held = part.held
        if self._stream is None:
            return _Coming(held.to(self._device), None)
        with torch.cuda.stream(self._stream):
            tensor = held.to(self._device, non_blocking=True)
            return _Coming(tensor, self._stream.record_event())

    def keep_up(self) -> None:
        """Wait until what was queued before the last AHEAD calls is done.

        What is copied beside the computation holds its memory until both are through with it: with all work
        of a walk queued at once, all its states would be on the device.
        """
        if self._stream is None:
            return
        event = torch.cuda.Event(blocking=True)
        event.record(torch.cuda.current_stream(self._device))
        self._queued.append(event)
        if len(self._queued) > AHEAD:
            self._queued.popleft().synchronize()

    def _unpin(self, buffer: Tensor) -> None:
        assert self._stream is not None
        self._stream.synchronize()  # what was copied from it last
        unpin(buffer)

    def give_back(self, buffer: Tensor | None) -> None:
        """A buffer of the host that is free again."""
        assert buffer is not None
        self._pinned.give_back(buffer)
