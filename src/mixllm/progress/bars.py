"""Progress for a person: a bar a stage."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.table import Column
from rich.text import Text

from mixllm.progress.stage import Stage, Steps, memory

# Columns of a terminal from which on there is room for more than what is done and how long it takes.
ROOM = 66


class Bars:
    """A bar a stage on a terminal; where there is none, one line when the stage ends."""

    def __init__(self, console: Console) -> None:
        self._console = console

    @contextmanager
    def stage(self, name: str, total: int, blocks: int = 0) -> Iterator[Stage]:
        title = TextColumn("{task.description}", markup=False, table_column=_whole())
        left = TimeRemainingColumn(elapsed_when_finished=True, table_column=_whole())
        columns: tuple[ProgressColumn, ...] = (title, _Count(_whole()), left)
        if self._console.width >= ROOM:
            columns = (
                TextColumn("{task.description:<22}", markup=False, table_column=_whole()),
                BarColumn(),  # what a narrow terminal has no room for is taken from it
                _Count(_whole()),
                _Rate(_whole()),
                left,
                _Memory(_whole()),
            )
        with RichProgress(*columns, console=self._console) as bars:
            task = bars.add_task(name, total=total, blocks=blocks)
            yield Steps(lambda steps: bars.advance(task, steps))

    def note(self, message: str) -> None:
        self._console.print(message, markup=False, highlight=False, soft_wrap=True)


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
        host, gpu = (size / 1e9 for size in memory().values())
        return Text(f"{host:.1f} GB" + (f", GPU at most {gpu:.1f} GB" if gpu else ""))
