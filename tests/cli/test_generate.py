import io
import shutil
from pathlib import Path

import pytest
from tests.cli.conftest import Tiny

from mixllm.cli import main


def test_goes_on_from_the_prompt_the_same_way_each_time(tiny: Tiny, capsys):
    texts = []
    for _ in range(2):
        assert main.run(["generate", str(tiny.out), "-p", "The [quick]", "--max-tokens", "8"]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] and texts[0].startswith("The [quick]") and len(texts[0]) > 12


def test_sampling_follows_its_seed(tiny: Tiny, capsys):
    def sample(seed: str) -> str:
        flags = ["--max-tokens", "12", "--temperature", "2", "--seed", seed]
        assert main.run(["generate", str(tiny.out), "-p", "The", *flags]) == 0
        out: str = capsys.readouterr().out
        return out

    assert sample("1") == sample("1")
    assert len({sample(seed) for seed in "123"}) > 1


def test_an_empty_prompt(tiny: Tiny, capsys):
    assert main.run(["generate", str(tiny.out), "-p", ""]) == 2
    assert "--prompt" in capsys.readouterr().err


@pytest.mark.parametrize("said", ["hello\nand then?\n\n", "hello\nand then?\n"])
def test_chat_answers_until_an_empty_line_or_the_end(tiny: Tiny, capsys, monkeypatch, said: str):
    monkeypatch.setattr("sys.stdin", io.StringIO(said))
    assert main.run(["chat", str(tiny.out), "--max-tokens", "5"]) == 0
    out = capsys.readouterr().out
    assert out.count("> ") == 3 and out.endswith("\n") is said.endswith("then?\n")


def test_chat_needs_a_template(tiny: Tiny, tmp_path: Path, capsys):
    shutil.copytree(tiny.out, tmp_path / "out", ignore=shutil.ignore_patterns("*.jinja"))
    assert main.run(["chat", str(tmp_path / "out")]) == 2
    assert "no chat template" in capsys.readouterr().err


def test_no_more_is_written_than_the_model_reads(tiny: Tiny, capsys, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "mixllm.cli.generate._stream", lambda model, tokenizer, inputs, most, *_: asked.append(most) or ""
    )
    assert main.run(["generate", str(tiny.out), "-p", "x" * 250, "--max-tokens", "50"]) == 0
    monkeypatch.setattr("sys.stdin", io.StringIO("x" * 220 + "\n"))
    assert main.run(["chat", str(tiny.out), "--max-tokens", "500"]) == 0
    assert asked[0] == 6 and 0 < asked[1] < 36
    capsys.readouterr()
    assert main.run(["generate", str(tiny.out), "-p", "x" * 256]) == 2
    assert "--prompt: 256 tokens, but the model reads at most 256" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin", io.StringIO("x" * 300 + "\n"))
    assert main.run(["chat", str(tiny.out)]) == 2
    assert "the conversation: " in capsys.readouterr().err


@pytest.mark.parametrize("given", ["nan", "inf", "-1", "warm"])
def test_a_temperature_that_is_none_is_refused_before_a_model_is_looked_for(given: str, capsys):
    assert main.run(["generate", "/no/such", "-p", "x", "--temperature", given]) == 2
    assert "temperature" in capsys.readouterr().err
