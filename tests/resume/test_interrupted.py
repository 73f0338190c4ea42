"""Ctrl-C: exit code 130, one line that says how to go on where there is something to go on with."""

from __future__ import annotations

import random
import signal
from pathlib import Path

from mixllm.resume import partial_of
from tests.resume.conftest import Case, contents


def test_interrupted_at_random_moments(case: Case, tmp_path: Path) -> None:
    moments, out = random.Random(1), tmp_path / "out"
    arguments, said = [*case.arguments, "-o", out], set()
    for _ in range(8):
        ended = case.forks.run(arguments, delay=moments.uniform(0.1, case.seconds), how=signal.SIGINT)
        if ended.code == 0:
            break
        assert ended.code == 130, ended
        if partial_of(out).exists():
            line = f"error: interrupted; run the same command again to continue from {partial_of(out)}\n"
        else:
            line = "error: interrupted\n"
        assert ended.err == line
        said.add(line)
    assert said
    assert case.forks.run(arguments).code == 0
    assert contents(out) == case.expected
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
