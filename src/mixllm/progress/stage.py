"""What work reports to, whoever reads it: stages of equal steps, and notes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Protocol, TypeVar

from mixllm.memory import gpu_peak_bytes, host_bytes

T = TypeVar("T")


class Stage(Protocol):
    """A stretch of work on its way."""

    def advance(self, steps: int = 1) -> None:
        """So many more of its steps are done."""
        ...


class Progress(Protocol):
    """What quantize() tells as it goes; any object with these two methods will do. Stages do not nest."""

    def stage(self, name: str, total: int, blocks: int = 0) -> AbstractContextManager[Stage]:
        """A stretch of work of `total` equal steps; blocks: of the model, each as many steps, where it goes
        through them."""
        ...

    def note(self, message: str) -> None:
        """One line that a person should see, such as a warning."""
        ...


def stepped(things: Iterable[T], bar: Stage) -> Iterator[T]:
    """The same things; the bar advances as each is asked for after the one before."""
    for thing in things:
        yield thing
        bar.advance()


class Silent:
    """Says nothing."""

    @contextmanager
    def stage(self, name: str, total: int, blocks: int = 0) -> Iterator[Stage]:
        yield Steps(lambda _: None)

    def note(self, message: str) -> None:
        pass


class Together:
    """Tells several: a person and a log."""

    def __init__(self, *parts: Progress) -> None:
        self._parts = parts

    @contextmanager
    def stage(self, name: str, total: int, blocks: int = 0) -> Iterator[Stage]:
        with ExitStack() as stack:
            stages = [stack.enter_context(part.stage(name, total, blocks)) for part in self._parts]

            def step(steps: int) -> None:
                for stage in stages:
                    stage.advance(steps)

            yield Steps(step)

    def note(self, message: str) -> None:
        for part in self._parts:
            part.note(message)


class Steps:
    """A Stage that calls step with the number of steps."""

    def __init__(self, step: Callable[[int], None]) -> None:
        self._step = step

    def advance(self, steps: int = 1) -> None:
        self._step(steps)


def memory() -> dict[str, int]:
    """What the process takes now, on the GPU at most so far, under the names that a log has for it."""
    return {"host_bytes": host_bytes(), "gpu_peak_bytes": gpu_peak_bytes()}
