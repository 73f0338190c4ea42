"""Runs that are killed: a process that has imported everything forks a child for each.

with Forks() as forks:
    forks.run(arguments, delay=0.3)   # killed after 0.3 s, unless it ended before
    forks.run(arguments, delay=0.3, how=signal.SIGINT)   # or interrupted
    forks.run(arguments, event=7)     # kills itself before its 7th change of a name in the file system
    forks.run(arguments, event=7, fill="/disk/ballast")  # fills that disk then
    forks.run(arguments, event=7, limit=4096)            # may then write no file larger than that
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

# What Python tells audit hooks before it changes names in the file system.
EVENTS = {"os.rename", "os.remove", "os.rmdir", "os.mkdir"}


@dataclass(frozen=True)
class Ended:
    """code: of the exit, negative for a signal's; err: its standard error; seconds: how long it took."""

    code: int
    err: str
    seconds: float

    @property
    def killed(self) -> bool:
        return self.code == -signal.SIGKILL


class Forks:
    def __enter__(self) -> Self:
        pipe: Any = subprocess.PIPE
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.resume.forks"], stdin=pipe, stdout=pipe, text=True
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._server.communicate(timeout=30)

    def run(
        self,
        arguments: list[object],
        *,
        delay: float | None = None,
        how: int = signal.SIGKILL,
        event: int = 0,
        fill: Path | None = None,
        limit: int | None = None,
    ) -> Ended:
        """Run the command line `arguments` in a new process."""
        assert self._server.stdin is not None and self._server.stdout is not None
        asked = {
            "arguments": [str(a) for a in arguments],
            "delay": delay,
            "how": how,
            "event": event,
            "fill": fill and str(fill),
            "limit": limit,
        }
        self._server.stdin.write(json.dumps(asked) + "\n")
        self._server.stdin.flush()
        return Ended(**json.loads(self._server.stdout.readline()))


def serve() -> None:
    import torch

    import mixllm.pipeline
    from mixllm.cli import main

    assert mixllm.pipeline
    torch.set_num_threads(1)
    for line in sys.stdin:
        asked = json.loads(line)
        began = time.monotonic()
        read, write = os.pipe()  # a file would meet the limit too
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGINT, signal.default_int_handler)  # which may be ignored here
            os.dup2(write, 2)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            if asked["event"]:
                _at_event(asked["event"], lambda asked=asked: _spoil(asked["fill"], asked["limit"]))
            os._exit(main.run(asked["arguments"]))
        os.close(write)
        code = os.waitstatus_to_exitcode(_wait(child, asked["delay"], asked["how"]))
        with open(read) as err:
            ended = Ended(code, err.read(), time.monotonic() - began)
        print(json.dumps(asdict(ended)), flush=True)


def _wait(child: int, delay: float | None, how: int) -> int:
    """Wait for the child's end; send it signal `how` after `delay` seconds."""
    end = time.monotonic() + (delay or 0)
    while delay is not None and time.monotonic() < end:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return status
        time.sleep(0.002)
    if delay is not None:
        os.kill(child, how)
    return os.waitpid(child, 0)[1]


def _at_event(count: int, act: Callable[[], None]) -> None:
    left = count

    def hook(event: str, _: Any) -> None:
        nonlocal left
        if event in EVENTS:
            left -= 1
            if left == 0:
                act()

    sys.addaudithook(hook)


def _spoil(fill: str | None, limit: int | None) -> None:
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    elif fill is not None:
        with open(fill, "wb", buffering=0) as ballast, contextlib.suppress(OSError):
            while True:
                ballast.write(bytes(4096))
    else:
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    serve()
