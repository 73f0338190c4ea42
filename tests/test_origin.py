"""A float model that the checkpoint was not made of is refused, or told, before anything is measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mixllm.cli import main
from tests.cli.conftest import Tiny, tiny
from tests.models import write_tiny

__all__ = ["tiny"]
COMMANDS = ("eval", "report", "compare")


def run(command: str, tiny: Tiny, model: Path, *more: str) -> int:
    how = ("--model", model, "--text", tiny.text, "--window", 32, "--samples", 2, *more)
    return main.run([str(argument) for argument in (command, tiny.out, *how)])


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("architecture", "sizes", "said"),
    [
        ("qwen2", {}, "a qwen2 with 2 blocks of 72"),
        ("llama", {"num_hidden_layers": 4}, "a llama with 4 blocks of 72"),
        ("llama", {"hidden_size": 48}, "a llama with 3 blocks of 48"),
    ],
)
def test_another_architecture_or_size_is_refused_or_told(
    tiny: Tiny, tmp_path: Path, capsys, command: str, architecture: str, sizes: dict[str, Any], said: str
) -> None:
    """Compared may be what one likes: a small model at 8 bits, and a large one at 4."""
    write_tiny(tmp_path / "other", architecture, **sizes)
    assert run(command, tiny, tmp_path / "other") == (0 if command == "compare" else 2)
    error = capsys.readouterr().err
    assert f"{tiny.out}: it is a llama with 3 blocks of 72 and " in error and said in error
    assert ("give the one it was made of" in error) is (command != "compare")


def test_bits_are_those_of_its_own_layers(tiny: Tiny, tmp_path: Path, capsys) -> None:
    write_tiny(tmp_path / "other", hidden_size=48)
    found = []
    for model in (tiny.model, tmp_path / "other"):
        assert run("compare", tiny, model, "--json", "--quiet") == 0
        found.append(json.loads(capsys.readouterr().out)["rows"][1]["bits"])
    assert found[0] == found[1]


@pytest.mark.parametrize("command", COMMANDS)
def test_other_weights_are_told_in_one_line(tiny: Tiny, tmp_path: Path, capsys, command: str) -> None:
    write_tiny(tmp_path / "other", tie=True, seed=7)
    for model, told in ((tmp_path / "other", 1), (tiny.model, 0)):
        assert run(command, tiny, model, *(["-o", str(tmp_path / "page.html")] * (command == "report"))) == 0
        error = capsys.readouterr().err
        line = f"{tiny.out}: was not made of the float model in {tmp_path / 'other'}, whose "
        assert error.count(line) == error.count("was not made") == told


def test_fewer_bits_of_the_same_weights_are_no_other_model(tiny: Tiny, tmp_path: Path, capsys) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    AutoModelForCausalLM.from_pretrained(tiny.model).bfloat16().save_pretrained(tmp_path / "half")
    AutoTokenizer.from_pretrained(tiny.model).save_pretrained(tmp_path / "half")
    assert run("eval", tiny, tmp_path / "half") == 0
    assert "was not made" not in capsys.readouterr().err
