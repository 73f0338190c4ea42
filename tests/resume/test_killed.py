"""Whatever moment a run is killed at, the same command ends with the bytes of a run that never was."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.models import write_tiny
from tests.resume.forks import Forks

TEXT = "The quick brown fox jumps over the lazy dog, and then the other way round. " * 40
KILLS = 30


@dataclass(frozen=True)
class Case:
    """A way to start runs of one model with one set of options, and what one that is left alone makes."""

    forks: Forks
    arguments: list[object]
    expected: dict[str, bytes]
    seconds: float


def contents(directory: Path) -> dict[str, bytes]:
    """All files but those that hold times."""
    files = [f for f in directory.rglob("*") if f.is_file() and f.name not in ("summary.json", "log.jsonl")]
    return {str(f.relative_to(directory)): f.read_bytes() for f in files}


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    root = tmp_path_factory.mktemp("killed")
    write_tiny(root / "model", "llama", tie=True)
    (root / "text.txt").write_text(TEXT)
    options = ["--samples", 4, "--window", 40, "--bits", 5, "--shard-size", "100KB", "--quiet"]
    arguments = ["quantize", root / "model", "--calibration", root / "text.txt", *options]
    with Forks() as forks:
        ended = forks.run([*arguments, "-o", root / "out"])
        assert (ended.code, ended.err) == (0, "")
        yield Case(forks, arguments, contents(root / "out"), ended.seconds)


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
