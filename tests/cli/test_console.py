import json
import logging
import math
import os

import pytest
from rich.table import Table

from mixllm.cli.console import print_json, print_text, progress, quiet_libraries, stdout
from mixllm.plan import Share


def test_json_of_dataclasses_and_plain_values(capsys):
    print_json(Share(rows=4, wide=1))
    assert json.loads(capsys.readouterr().out) == {"rows": 4, "wide": 1}
    print_json({"a": [1.5, None]})
    assert json.loads(capsys.readouterr().out) == {"a": [1.5, None]}


def test_json_has_null_for_what_is_no_number(capsys):
    """A broken model's perplexity is infinite; `Infinity` is no JSON, and other programs stop at it."""
    print_json({"perplexity": math.inf, "kl": [math.nan, -math.inf, 1e-300], "name": "NaN"})
    out = capsys.readouterr().out
    assert json.loads(out) == {"perplexity": None, "kl": [None, None, 1e-300], "name": "NaN"}
    assert "Infinity" not in out


@pytest.mark.parametrize("name", ["out[w4]", "a[/b]", ":smile:", "[bold]x"])
def test_a_name_is_shown_as_it_is(capsys, name: str):
    table = Table("model", box=None)
    table.add_row(name)
    stdout().print(table)
    assert capsys.readouterr().out.split() == ["model", name]
    with progress(quiet=False).stage(f"measure {name}", 1) as bar:
        bar.advance()
    assert f"measure {name} " in capsys.readouterr().err


def test_libraries_are_quiet(monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    loggers = [logging.getLogger(name) for name in ("huggingface_hub", "transformers")]
    before = [logger.level for logger in loggers]
    try:
        quiet_libraries(bars=True)  # which no terminal is there for
        assert os.environ["TQDM_DISABLE"] == "1"
        assert [logger.level for logger in loggers] == [logging.ERROR] * 2
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def test_on_a_narrow_terminal_text_is_filled_and_no_figure_is_cut(capsys, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "30")
    console, table = stdout(), Table("a model's name", "some figures that are long", box=None)
    table.add_row("SmolLM2-135M", "123456.789 ± 0.123456789")
    console.print(table)
    print_text(console, "so many [words] that they do not fit into a line")
    name, figures, *text = capsys.readouterr().out.splitlines()
    assert "some figures that are long" in name and "SmolLM2-135M" in figures and "± 0.123456789" in figures
    assert " ".join(text) == "so many [words] that they do not fit into a line" and max(map(len, text)) <= 30
