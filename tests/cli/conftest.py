from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.models import write_tiny

from mixllm.cli import main

TEXT = "The quick brown fox jumps over the lazy dog, and then the other way round. " * 40
BUDGET = ("--bits", "5", "--samples", "4", "--window", "40")


@dataclass(frozen=True)
class Tiny:
    """A float model, a text, and the checkpoint that the quantize command made of them."""

    model: Path
    text: Path
    out: Path


@pytest.fixture(scope="package")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    root = tmp_path_factory.mktemp("tiny")
    made = Tiny(root / "model", root / "text.txt", root / "out")
    write_tiny(made.model, "llama", tie=True)
    made.text.write_text(TEXT)
    arguments = ["quantize", made.model, "-o", made.out, "--calibration", made.text, "--quiet", *BUDGET]
    assert main.run([str(argument) for argument in arguments]) == 0
    return made
