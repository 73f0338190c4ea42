"""A tiny model, one set of options, and what a run that is left alone makes of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from mixllm.config import QuantConfig
from mixllm.pipeline import quantize
from mixllm.progress import Silent
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


class Notes(Silent):
    """Keeps what a person would be told, and the stages with their steps."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.stages: dict[str, int] = {}

    def note(self, message: str) -> None:
        self.notes.append(message)

    def stage(self, name: str, total: int, blocks: int = 0) -> Any:
        self.stages[name] = blocks
        return super().stage(name, total, blocks)


def config(root: Path, **fields: Any) -> QuantConfig:
    text = str(root / "text.txt")
    return QuantConfig.model_validate(
        {"calibration": text, "samples": 4, "window": 40, "bits": 5.0, **fields}
    )


@pytest.fixture(scope="package")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("workspace")
    write_tiny(root / "model", "llama", tie=True)
    (root / "text.txt").write_text(TEXT)
    quantize(str(root / "model"), root / "out", config(root))
    return root
