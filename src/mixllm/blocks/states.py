"""Hidden states at block boundaries, kept where they fit: on the device, in host memory or on disk."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from mixllm.blocks.lane import Lane, Part
from mixllm.blocks.room import Room
from mixllm.errors import MixllmError


class States:
    """Lists of tensors by number, each tensor placed by itself; a context, at whose end all are gone.

    device: where the tensors come from and go back to.
    Copies to and from the host run beside the computation: the next tensor is on its way while one is used.
    """

    def __init__(self, device: torch.device, room: Room) -> None:
        self._device, self._disk, self._soon = device, room.disk, room.soon
        self._left = {"device": room.device, "host": room.host if device.type == "cuda" else 0}
        self._kept: dict[int, list[Part]] = {}
        self._lane = Lane(device, room.host)
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

    def _take(self, parts: list[Part]) -> Iterator[Tensor]:
        for part, tensor in zip(parts, self._stream(parts), strict=True):
            if isinstance(part.held, Path):
                part.held.unlink()
            else:
                self._left[part.where] += part.bytes
                if part.where == "host":
                    self._lane.give_back(part.held)
            part.held = None
            yield tensor

    def _place(self, tensor: Tensor, soon: bool) -> Part:
        size = tensor.nbytes
        others = soon or self._left["device"] - size >= self._soon
        for where in ("device", "host") if others else ("host", "device"):
            if self._left[where] >= size:
                self._left[where] -= size
                held = tensor if where == "device" else self._lane.away(tensor)
                return Part(where, size, tensor.dtype, tensor.shape, held)
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
        return Part("disk", size, tensor.dtype, tensor.shape, file)

    def _stream(self, parts: list[Part]) -> Iterator[Tensor]:
        coming = [self._lane.back(part) for part in parts[:1]]
        for following in parts[1:]:
            coming.append(self._lane.back(following))
            yield coming.pop(0).ready()
            self._lane.keep_up()
        for last in coming:
            yield last.ready()
