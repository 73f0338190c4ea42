"""How long-running work says where it is: stage, block, rate, time left and memory, to a person or to a log.

    with progress.stage("salience: forward", total=30 * 8, blocks=30) as bar:
        for block in blocks:
            for batch in batches:
                ...
                bar.advance()

Stages follow one another; they do not nest.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Protocol, TextIO, TypeVar

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.table import Column
from rich.text import Text

from mixllm.memory import gpu_peak_bytes, host_bytes

T = TypeVar("T")


class Stage(Protocol):
    def advance(self, steps: int = 1) -> None: ...


class Progress(Protocol):
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
        yield _Steps(lambda _: None)

    def note(self, message: str) -> None:
        pass


class Bars:
    """A bar a stage on a terminal; where there is none, one line when the stage ends."""

    def __init__(self, console: Console) -> None:
        self._console = console

    @contextmanager
    def stage(self, name: str, total: int, blocks: int = 0) -> Iterator[Stage]:
        columns = (
            TextColumn("{task.description:<22}", table_column=_whole()),
            BarColumn(),  # what a narrow terminal has no room for is taken from it
            _Count(_whole()),
            _Rate(_whole()),
            TimeRemainingColumn(elapsed_when_finished=True, table_column=_whole()),
            _Memory(_whole()),
        )
        with RichProgress(*columns, console=self._console) as bars:
            task = bars.add_task(name, total=total, blocks=blocks)
            yield _Steps(lambda steps: bars.advance(task, steps))

    def note(self, message: str) -> None:
        self._console.print(message, markup=False, highlight=False, soft_wrap=True)


class JsonLines:
    """One JSON object a line: for a run's log and for other programs.

    interval: seconds between lines about the steps of one stage; its start and end are always written.
    clock: seconds, any origin.
    """

    def __init__(
        self, stream: TextIO, interval: float = 5.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._stream, self._interval, self._clock = stream, interval, clock

    @contextmanager
    def stage(self, name: str, total: int, blocks: int = 0) -> Iterator[Stage]:
        began = written = self._clock()
        done = 0

        def step(steps: int) -> None:
            nonlocal done, written
            done += steps
            now = self._clock()
            if now - written >= self._interval:
                written = now
                rate = done / (now - began)
                left = (total - done) / rate
                where = {"block": done * blocks // total, "blocks": blocks} if blocks else {}
                self._write(
                    "step",
                    stage=name,
                    done=done,
                    total=total,
                    **where,
                    rate=rate,
                    seconds_left=left,
                    **_memory(),
                )

        self._write("start", stage=name, total=total)
        yield _Steps(step)
        self._write("end", stage=name, done=done, total=total, seconds=self._clock() - began, **_memory())

    def note(self, message: str) -> None:
        self._write("note", message=message)

    def _write(self, event: str, **values: str | int | float) -> None:
        short = {key: round(value, 3) if isinstance(value, float) else value for key, value in values.items()}
        when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self._stream.write(json.dumps({"time": when, "event": event, **short}) + "\n")
        self._stream.flush()


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

            yield _Steps(step)

    def note(self, message: str) -> None:
        for part in self._parts:
            part.note(message)


class _Steps:
    def __init__(self, step: Callable[[int], None]) -> None:
        self._step = step

    def advance(self, steps: int = 1) -> None:
        self._step(steps)


def _whole() -> Column:
    """A column that is not broken into two lines."""
    return Column(no_wrap=True)


class _Count(ProgressColumn):
    def render(self, task: Task) -> Text:
        done, total, blocks = int(task.completed), int(task.total or 0), task.fields["blocks"]
        return Text(f"block {done * blocks // total}/{blocks}" if blocks and total else f"{done}/{total}")


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed, blocks = task.finished_speed or task.speed, task.fields["blocks"]
        if not speed or not task.total:
            return Text("")
        if blocks:
            speed *= blocks / task.total
        each = "a block" if blocks else "each"
        return Text(f"{speed:.1f} a second" if speed >= 1 else f"{1 / speed:.1f} s {each}")


class _Memory(ProgressColumn):
    max_refresh = 1.0

    def render(self, task: Task) -> Text:
        host, gpu = (size / 1e9 for size in _memory().values())
        return Text(f"{host:.1f} GB" + (f", GPU at most {gpu:.1f} GB" if gpu else ""))


def _memory() -> dict[str, int]:
    return {"host_bytes": host_bytes(), "gpu_peak_bytes": gpu_peak_bytes()}
