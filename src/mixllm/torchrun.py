"""What torchrun tells each of the processes that it starts, in their environment."""

from __future__ import annotations

import os

from mixllm.errors import MixllmError

# Beside WORLD_SIZE, which other launchers and schedulers set too.
_TOLD = ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def world() -> int:
    """How many processes torchrun started together; 1 without it.

    Raises MixllmError where the environment has several, but not all that torchrun tells each of them.
    """
    size = os.environ.get("WORLD_SIZE", "1")
    if size == "1":
        return 1
    if missing := [name for name in _TOLD if not os.environ.get(name)]:
        raise MixllmError(
            f"WORLD_SIZE: is {size} in the environment, but {missing[0]} is not there; start the processes "
            "with torchrun, or unset WORLD_SIZE for a single one"
        )
    return int(size)


def here() -> int:
    """How many processes torchrun started together on this machine."""
    return int(os.environ["LOCAL_WORLD_SIZE"]) if world() > 1 else 1


def number_here() -> int:
    """The number of this process among those on this machine."""
    return int(os.environ["LOCAL_RANK"]) if world() > 1 else 0


def is_first() -> bool:
    """Whether this process is the one that talks, of those that torchrun started together."""
    return world() == 1 or int(os.environ["RANK"]) == 0
