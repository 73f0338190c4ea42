"""What the walks that measure salience and round take of memory, and the room that leaves for states."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

import torch

from mixllm.blocks.room import Room, passes_again, stretches, stretches_that_fit
from mixllm.config import Rounding
from mixllm.errors import MixllmError
from mixllm.needs import limits
from mixllm.needs.block import leaving, working
from mixllm.needs.sizes import Sizes
from mixllm.salience.waiting import waiting_bytes

# States are given no more room than up to this, nor than a share of what is free when the run starts; on the
# host, where they would have to go to files otherwise, up to another share of what is free.
MOST_DEVICE, MOST_HOST, SHARE_FOR_STATES = 22 * 10**9, 14 * 10**9, 0.5
# What torch's allocator may hold of the device, over what tensors are given.
RESERVED = 1.04
# Enough for full matrix products on each; fewer where memory is short. On a CPU no more, so that what a block
# makes of them comes from memory that the process has (see mixllm.blocks.losses.LOGITS_AT_ONCE).
TOKENS_AT_ONCE = {"cuda": 16_384, "cpu": 1_024}


@dataclass(frozen=True)
class Needs:
    """What a run takes: `batch` tokens go through a block at once; device, host, temporary: bytes at their
    peaks, on the GPU (0 without one), in host memory beyond the page cache, and in temporary files.
    room: for states, of which `temporary` are those that find none in memory. again: the blocks that salience
    goes through once more, for states or Hessians that had no room to wait."""

    batch: int
    device: int
    host: int
    temporary: int
    room: Room
    again: int = 0


@dataclass(frozen=True)
class _Waiting:
    """What waits for the way back of a walk over `blocks` blocks: boundaries of states, and candidates.

    boundary, beside: bytes of a boundary, and of what a block may leave. measured: whether there is a way
    back; without one there is a single boundary, on its way.
    """

    blocks: int
    boundary: int
    beside: int
    measured: bool

    def cut(self, room: Room) -> tuple[list[range], int]:
        """The stretches of the walk in this room, and how many blocks leave something at once."""
        if not self.measured:
            return [], 0
        return stretches_that_fit(self.blocks, room, self.boundary, self.beside)

    def bytes(self, room: Room) -> int:
        """States or gradients on their way, and what waits: boundaries, and candidates of all blocks or of a
        stretch of them."""
        cut, leaving = self.cut(room)
        return (1 + len(cut)) * self.boundary + leaving * self.beside

    @property
    def least(self) -> int:
        """The bytes with as few states as will do."""
        fewest = len(stretches(self.blocks, 0)) if self.measured else 0
        return (1 + fewest) * self.boundary + max(0, fewest - 1) * self.beside


def needs(
    sizes: Sizes,
    tokens: int,
    window: int,
    device: torch.device,
    dtype: torch.dtype,
    *,
    measured: Collection[int],
    error: Rounding = "gptq",
) -> Needs:
    """tokens: of the calibration text that this process takes, in windows of `window`.

    measured: the widths at which the run measures salience, none where it does not; error: of which rounding.
    Raises MixllmError where one block and one window do not fit.
    """
    found = _of_walk(sizes, tokens, window, device, dtype, measured, error)
    if not measured:
        return found
    # The whole run's: rounding comes after it.
    after = _of_walk(sizes, tokens, window, device, dtype, (), error)
    return replace(
        found,
        device=max(found.device, after.device),
        host=max(found.host, after.host),
        temporary=max(found.temporary, after.temporary),
    )


def _of_walk(
    sizes: Sizes, tokens: int, window: int, device: torch.device, dtype: torch.dtype,
    measured: Collection[int], error: Rounding,
) -> Needs:  # fmt: skip
    """What the walk takes that measures salience, or, without widths to measure at, the one that rounds."""
    gpu = device.type == "cuda"
    batch, taken = _batch(sizes, tokens, window, device, dtype, len(measured))
    bound = _bound(device, taken, window)
    waiting = _Waiting(
        blocks=len(sizes.blocks),
        boundary=tokens * sizes.hidden * dtype.itemsize,
        beside=waiting_bytes(sizes.widest, measured, error),
        measured=bool(measured),
    )
    room = Room(bound - taken, soon=waiting.boundary, reserved=int(RESERVED * bound))
    # What stays free of the GPU's room, since none of what waits fits in there.
    pieces = waiting.beside + 2 * batch * sizes.hidden * dtype.itemsize
    other = limits.BASE_HOST + (limits.cuda_host() if gpu else limits.HELD + taken)
    if gpu:
        room = _with_host(room, waiting, pieces, other)
    states = waiting.bytes(room)
    on_device = min(room.device, states)
    on_host = min(states - on_device, room.host)
    cut, left = waiting.cut(room)
    # Where the first stretch has as many blocks as there are stretches, its candidates come beside as many
    # boundaries as there ever are, and the pieces show; elsewhere some boundaries have gone by then.
    held = min(room.host, on_host + pieces) if left and left + 1 == len(cut) else on_host
    return Needs(
        batch=batch,
        device=taken + on_device if gpu else 0,
        host=other + (held if gpu else on_device) + (0 if measured else leaving(sizes)),
        temporary=states - on_device - on_host,
        room=room,
        again=passes_again(cut, left, seen=error == "gptq"),
    )


def _bound(device: torch.device, taken: int, window: int) -> int:
    """Bytes that the walk may have where the model runs; MixllmError where those taken at least are more."""
    bound = limits.bound(device)
    if device.type == "cuda":
        bound = min(bound, max(MOST_DEVICE, taken))
    if taken > bound:
        raise MixllmError(
            f"device: one block and one window of {window} tokens take {taken / 1e9:.1f} GB, "
            f"{bound / 1e9:.1f} GB can be had on {device}; give a smaller --window or another --device"
        )
    return bound


def _batch(
    sizes: Sizes, tokens: int, window: int, device: torch.device, dtype: torch.dtype, measured: int
) -> tuple[int, int]:
    """How many tokens go through a block at once, and the bytes that takes."""
    # By what the machine has, not what is free: in batches of another size, sums differ in their last bits.
    share, total = limits.SHARE, limits.total(device)
    comfortable = min(MOST_DEVICE, share * total) if device.type == "cuda" else share**2 * total
    batch = max(window, min(tokens, TOKENS_AT_ONCE[device.type]) // window * window)
    taken = working(sizes, batch, dtype, device.type, measured)
    while taken > comfortable and batch > window:
        fewer = max(window, batch // 2 // window * window)
        less = working(sizes, fewer, dtype, device.type, measured)
        if less == taken:  # it is not the batch that takes the most
            break
        batch, taken = fewer, less
    return batch, taken


def _with_host(room: Room, waiting: _Waiting, pieces: int, other: int) -> Room:
    """The room with some of the host's memory where the GPU does not hold all that waits; elsewhere none is
    pinned, which takes longer than a walk. other: bytes of the host that are taken besides."""
    if waiting.bytes(room) <= room.device:
        return room
    free = limits.free()
    most = min(MOST_HOST, int(limits.SHARE * free)) - other
    if (wanted := waiting.least - room.device + pieces) > most:
        all_states = waiting.bytes(room) - room.device
        wanted = max(most, min(all_states, int(SHARE_FOR_STATES * free) - other))
    return replace(room, host=max(0, wanted))
