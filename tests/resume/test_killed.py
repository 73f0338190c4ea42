"""Whatever moment a run is killed at, the same command ends with the bytes of a run that never was."""

from __future__ import annotations

import random
from pathlib import Path

from tests.resume.conftest import Case, contents

TEXT = "The quick brown fox jumps over the lazy dog, and then the other way round. " * 40
KILLS = 30


def test_killed_at_random_moments(case: Case, tmp_path: Path) -> None:
    moments = random.Random(0)
    kills = finished = 0
    while kills < KILLS:
        out = tmp_path / str(finished) / "out"
        ended = case.forks.run([*case.arguments, "-o", out], delay=moments.uniform(0, case.seconds))
        if ended.killed:
            kills += 1
            assert not (out / "config.json").exists() or contents(out).keys() >= case.expected.keys()
        else:
            finished += 1
            assert (ended.code, contents(out)) == (0, case.expected)
    # The last one, whatever state it is in.
    assert case.forks.run([*case.arguments, "-o", out]).code == 0
    assert contents(out) == case.expected
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_killed_before_every_change_in_the_file_system(case: Case, tmp_path: Path) -> None:
    """The first attempt dies at the first change, the second at its second, and so on to the end."""
    out, event = tmp_path / "runs/out", 1
    while (ended := case.forks.run([*case.arguments, "-o", out], event=event)).killed:
        assert not (out / "config.json").exists() or contents(out).keys() >= case.expected.keys()
        event += 1
    assert event > 20 and ended.code == 0
    assert contents(out) == case.expected
    assert [path.name for path in out.parent.iterdir()] == ["out"]
