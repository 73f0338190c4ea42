"""What states between blocks may take of memory, and how a walk there and back is cut to keep to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


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


def passes_again(cut: list[range], leaving: int, *, seen: bool) -> int:
    """How many blocks are gone through once more between the walk there and their own way back.

    cut, leaving: by stretches_that_fit. That pass makes the states inside stretches; and where a block must
    be `seen` before its way back, there is one for those of which no pass before could leave anything.
    """
    blocks = sum(map(len, cut))
    made = blocks - len(cut)
    left = blocks if leaving == blocks else made if leaving else 0
    return made + seen * (blocks - left)
