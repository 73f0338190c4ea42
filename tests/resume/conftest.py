"""A tiny model, one set of options, and what a run that is left alone makes of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import pytest

from tests.models import write_tiny
from tests.resume.forks import Forks

TEXT = "The quick brown fox jumps over the lazy dog, and then the other way round. " * 40


@dataclass(frozen=True)
class Case:
    """A way to start runs of one model with one set of options, and what one that is left alone makes."""

    forks: Forks
    arguments: list[object]
    expected: dict[str, str]
    seconds: float


def contents(directory: Path) -> dict[str, str]:
    """The SHA-256 of every file but those that hold times."""
    files = [f for f in directory.rglob("*") if f.is_file() and f.name not in ("summary.json", "log.jsonl")]
    return {str(f.relative_to(directory)): sha256(f.read_bytes()).hexdigest() for f in files}


@pytest.fixture(scope="package")
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
