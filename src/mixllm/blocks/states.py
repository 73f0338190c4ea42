"""Hidden states at block boundaries, kept where they fit: on the device, in host memory or on disk."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from mixllm.blocks.pinned import Pinned, pin, unpin
from mixllm.errors import MixllmError

# Tensors that work is queued for on a GPU beyond the one it works on: enough to never wait for a launch.
AHEAD = 2


@dataclass(frozen=True)
class Room:
    """Bytes that states may take on the device and in host memory; what is more goes to files in `disk`.

    soon: bytes of the device's that are for what is wanted next. reserved: bytes of the device beyond which
    torch's allocator gives back what it holds for nothing.
    """

    device: int
    host: int = 0
    disk: Path | None = None
    soon: int = 0
    reserved: int = 2**62

    def boundaries(self, size: int, beside: int = 0) -> int:
        """How many boundaries of `size` bytes fit, beside the states or gradients that are on their way.

        beside: bytes that all but one block of a stretch leave; with m boundaries it has up to m blocks.
        """
        return (self.device + self.host - size + beside) // (size + beside)


class States:
    """Lists of tensors by number, each tensor placed by itself; a context, at whose end all are gone.

    device: where the tensors come from and go back to.
    Copies to and from the host run beside the computation: the next tensor is on its way while one is used.
    """

    def __init__(self, device: torch.device, room: Room) -> None:
        self._device, self._disk, self._soon = device, room.disk, room.soon
        self._left = {"device": room.device, "host": room.host if device.type == "cuda" else 0}
        self._kept: dict[int, list[_Part]] = {}
        self._lane = _Lane(device, room.host)
        self._files = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for part in chain.from_iterable(self._kept.values()):
            if isinstance(part.held, Path):
                part.held.unlink()
        self._kept.clear()
        self._lane.close()

    def put(self, i: int, tensors: Iterable[Tensor], *, soon: bool) -> None:
        """Keep tensors under number i, which is free. soon: they are wanted next, and have some of the
        device's room for themselves."""
        parts = self._kept[i] = []
        for tensor in tensors:
            parts.append(self._place(tensor, soon))

    def read(self, i: int) -> Iterator[Tensor]:
        """The tensors kept under i, on the device; they stay."""
        yield from self._stream(list(self._kept[i]))

    def take(self, i: int) -> Iterator[Tensor]:
        """The tensors kept under i, on the device; each leaves its place as it is given.

        The number is free at once, so what is made of them may be put under it.
        """
        return self._take(self._kept.pop(i))

    def _take(self, parts: list[_Part]) -> Iterator[Tensor]:
        for part, tensor in zip(parts, self._stream(parts), strict=True):
            if isinstance(part.held, Path):
                part.held.unlink()
            else:
                self._left[part.where] += part.bytes
                if part.where == "host":
                    self._lane.give_back(part.held)
            part.held = None
            yield tensor

    def _place(self, tensor: Tensor, soon: bool) -> _Part:
        size = tensor.nbytes
        others = soon or self._left["device"] - size >= self._soon
        for where in ("device", "host") if others else ("host", "device"):
            if self._left[where] >= size:
                self._left[where] -= size
                held = tensor if where == "device" else self._lane.away(tensor)
                return _Part(where, size, tensor.dtype, tensor.shape, held)
        assert self._disk is not None
        self._files += 1
        file = self._disk / f"{self._files}.states"
        try:
            tensor.cpu().contiguous().view(torch.uint8).numpy().tofile(file)
        except OSError as error:
            raise MixllmError(
                f"{file}: states between blocks cannot be written ({error.strerror}); "
                "free space there, or set TMPDIR to a directory on another disk"
            ) from None
        return _Part("disk", size, tensor.dtype, tensor.shape, file)

    def _stream(self, parts: list[_Part]) -> Iterator[Tensor]:
        coming = [self._lane.back(part) for part in parts[:1]]
        for following in parts[1:]:
            coming.append(self._lane.back(following))
            yield coming.pop(0).ready()
            self._lane.keep_up()
        for last in coming:
            yield last.ready()


ON_DEVICE = Room(2**62)


def stretches(blocks: int, fit: int) -> list[range]:
    """The blocks of a walk there and back, cut into as many stretches, in order, as `fit` boundaries allow.

    On the way there the states that enter each stretch are kept; on the way back, those inside it are made
    again when its turn comes. Each stretch leaves its room to those before it, which may so be longer: with m
    boundaries at once there are m stretches, and stretch j of 0 .. m - 1 has up to m - j blocks, which makes
    m (m + 1) / 2 in all. Where `fit` is too few for that, the fewest that do.
    """
    fewest = next(m for m in range(1, blocks + 1) if m * (m + 1) // 2 >= blocks)
    count = min(blocks, max(fit, fewest))
    found: list[range] = []
    for j in range(count):
        start = found[-1].stop if found else 0
        found.append(range(start, start + min(count - j, blocks - start - (count - j - 1))))
    return found


def stretches_that_fit(
    blocks: int, room: Room, boundary: int, beside: int, agreed: Callable[[int], int] = int
) -> tuple[list[range], int]:
    """The stretches of a walk there and back, and how many blocks may leave something, at most at once.

    All, where there is room for that from the walk there on; otherwise all but one of a stretch; none, where
    that would make states go to files.
    boundary: bytes of the states at one; beside: of what a block may leave. agreed: makes one number of those
    that several processes find.
    """
    if agreed(room.device + room.host >= boundary + blocks * (boundary + beside)):
        return stretches(blocks, blocks), blocks
    fit = agreed(room.boundaries(boundary, beside))
    if fit > 0 and fit * (fit + 1) // 2 >= blocks:
        cut = stretches(blocks, fit)
        return cut, max(map(len, cut)) - 1
    return stretches(blocks, agreed(room.boundaries(boundary))), 0


@dataclass
class _Part:
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


class _Lane:
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

    def back(self, part: _Part) -> _Coming:
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
