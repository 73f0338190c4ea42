"""One job on several processes, as torchrun starts them: which is this one, what is its share, what have all.

Samples are split, sums over them are added up; layers are rounded by one process each and given to all.
Processes go through the same steps in the same order; one that is lost ends the others with an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from itertools import accumulate
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from mixllm.errors import MixllmError, one_line
from mixllm.torchrun import world

T = TypeVar("T")
# Longer than any process works on its own, by far.
WAIT = timedelta(minutes=10)
# Bytes at whose multiples tensors start that are sent as one.
ALIGNED = 256


class Ranks:
    """rank: the number of this process, 0 .. size - 1; 0 alone writes and talks. size: how many there are."""

    def __init__(self, rank: int = 0, size: int = 1, device: torch.device | None = None) -> None:
        self.rank, self.size, self._device = rank, size, device or torch.device("cpu")

    @property
    def first(self) -> bool:
        return self.rank == 0

    def share(self, things: Tensor) -> Tensor:
        """This process's part of what is split along the first dimension; MixllmError where it is empty."""
        if len(things) < self.size:
            raise MixllmError(
                f"samples: {len(things)} windows of text are too few for {self.size} processes; "
                "start fewer, or give more samples"
            )
        return things.tensor_split(self.size)[self.rank]

    def add(self, *tensors: Tensor) -> None:
        """Make each tensor its sum over all processes, in place."""
        self._together(lambda: [dist.all_reduce(tensor) for tensor in tensors])

    def add_at(self, owner: int, tensor: Tensor) -> None:
        """Make the tensor its sum over all processes at the owner, in place; elsewhere it is spoiled."""
        self._together(lambda: dist.reduce(tensor, owner))

    def largest(self, tensor: Tensor) -> None:
        """Make the tensor its maximum over all processes, in place."""
        self._together(lambda: dist.all_reduce(tensor, dist.ReduceOp.MAX))

    def least(self, value: int) -> int:
        """The least of all processes' values."""
        found = torch.tensor([-value])
        self.largest(found)
        return -int(found)

    def every(self, value: T) -> list[T]:
        """What each process gave, anything small, in the order of processes."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        self._together(lambda: dist.all_gather_object(values, value))
        return values

    def exchange(self, tensors: dict[T, Tensor], note: Any = None) -> list[tuple[dict[T, Tensor], Any]]:
        """Each process's tensors, on this one's device, and its note, small; in one step a process, however
        many tensors there are."""
        if self.size == 1:
            return [(tensors, note)]
        own = [(name, t.shape, t.dtype) for name, t in tensors.items()]
        found = []
        for owner, (described, told) in enumerate(self.every((own, note))):
            starts = list(accumulate((_room(shape, dtype) for _, shape, dtype in described), initial=0))
            flat = torch.empty(starts[-1], dtype=torch.uint8, device=self._device)
            parts = {
                name: flat[start : start + shape.numel() * dtype.itemsize].view(dtype).view(shape)
                for (name, shape, dtype), start in zip(described, starts, strict=False)
            }
            if self.rank == owner:
                for name, part in parts.items():
                    part.copy_(tensors[name])
            if len(flat):
                self._together(partial(dist.broadcast, flat, owner))
            found.append((tensors if self.rank == owner else parts, told))
        return found

    def give(self, owner: int, tensors: dict[T, Tensor], note: Any = None) -> tuple[dict[T, Tensor], Any]:
        """The owner's tensors, on this process's device, and its note, small; what others give is ignored."""
        if self.size == 1:
            return tensors, note
        headers: list[Any] = [[(name, t.shape, t.dtype) for name, t in tensors.items()], note]
        self._together(lambda: dist.broadcast_object_list(headers, owner))
        found = {}
        for name, shape, dtype in headers[0]:
            if self.rank == owner:
                tensor = tensors[name].contiguous()
            else:
                tensor = torch.empty(shape, dtype=dtype, device=self._device)
            # As bytes: not every backend knows every type.
            self._together(partial(dist.broadcast, tensor.reshape(-1).view(torch.uint8), owner))
            found[name] = tensor
        return found, headers[1]

    def tell(self, value: T | None = None) -> T:
        """What process 0 gives, anything small; what others give is ignored."""
        note: T = self.give(0, {}, value)[1]
        return note

    @contextmanager
    def one_first(self) -> Iterator[None]:
        """Process 0 goes through the context before the others, so that they find what it has made."""
        if not self.first:
            self._together(dist.barrier)
        yield
        if self.first:
            self._together(dist.barrier)

    def owners(self, costs: Sequence[float]) -> list[int]:
        """Who does each of several pieces of work, so that all are busy about as long."""
        busy = [0.0] * self.size
        found = [0] * len(costs)
        for piece in sorted(range(len(costs)), key=lambda i: -costs[i]):
            found[piece] = busy.index(min(busy))
            busy[found[piece]] += costs[piece]
        return found

    def _together(self, step: Callable[[], Any]) -> None:
        if self.size == 1:
            return
        try:
            step()
        except RuntimeError as error:
            raise MixllmError(
                f"process {self.rank} of {self.size}: another process is gone or hangs ({one_line(error)}); "
                "see its own messages, then start the run again"
            ) from None


def _room(shape: torch.Size, dtype: torch.dtype) -> int:
    """Bytes of a tensor among others, each at an address that suits all dtypes."""
    return -(-shape.numel() * dtype.itemsize // ALIGNED) * ALIGNED


ALONE = Ranks()


@contextmanager
def joined(device: torch.device, wait: timedelta = WAIT) -> Iterator[Ranks]:
    """The processes that torchrun started together, this one computing on `device`; without torchrun, one.

    wait: for how long the others may be silent.
    """
    size = world()
    if device.index is not None and device.type == "cuda":
        # Triton launches on the current device, whatever its tensors are on.
        torch.cuda.set_device(device)
    if size == 1:
        yield ALONE
        return
    # Small things go from host to host: sent by NCCL, each would wait for all that its GPU has queued.
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    try:
        dist.init_process_group(backend, timeout=wait, device_id=device if device.type == "cuda" else None)
    except RuntimeError as error:
        raise MixllmError(
            f"the other processes that torchrun started cannot be reached ({one_line(error)})"
        ) from None
    yield Ranks(dist.get_rank(), size, device)
    # Not after an error: to take leave of processes that are gone can take for ever.
    dist.destroy_process_group()
