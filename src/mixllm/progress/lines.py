"""Progress for a log and for other programs: a JSON object a line."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from mixllm.progress.stage import Stage, Steps, memory


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
                    **memory(),
                )

        self._write("start", stage=name, total=total)
        yield Steps(step)
        self._write("end", stage=name, done=done, total=total, seconds=self._clock() - began, **memory())

    def note(self, message: str) -> None:
        self._write("note", message=message)

    def _write(self, event: str, **values: str | int | float) -> None:
        short = {key: round(value, 3) if isinstance(value, float) else value for key, value in values.items()}
        when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self._stream.write(json.dumps({"time": when, "event": event, **short}) + "\n")
        self._stream.flush()
