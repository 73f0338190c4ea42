"""README and docs say what is so: links lead somewhere, commands and the example work."""

from __future__ import annotations

import re
import shlex
import textwrap
from pathlib import Path

import pytest
import typer

from mixllm.cli.main import app
from tests.models import write_tiny

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


def anchors(page: Path) -> set[str]:
    """What GitHub makes of a page's headings."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    for link in links:
        path, _, anchor = link.partition("#")
        if not path.startswith("https://"):
            target = page.parent / path if path else page
            assert target.exists() and (not anchor or anchor in anchors(target)), link


def test_the_readme_leads_to_every_page() -> None:
    pages = {f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")}
    assert pages <= {link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", README)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_their_options_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    lines = re.findall(r"^ {4}(?:torchrun .* -m )?mixllm (.+)$", text, re.MULTILINE)
    inline = re.findall(r"`mixllm ([^`]+)`", text)
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]  # a group's
    for line in (*lines, *inline):
        name, *words = shlex.split(line.replace("[", " ").replace("]", " "), comments=True)
        if not name.startswith("--"):
            options = {flag for parameter in commands[name].params for flag in (*parameter.opts, "--help")}
            assert {word for word in words if word.startswith("-")} <= options, line


def test_the_page_of_the_code_names_every_module() -> None:
    named = set(re.findall(r"`(\w+)`", (ROOT / "docs" / "code.md").read_text(encoding="utf-8")))
    there = {path.stem for path in (ROOT / "src" / "mixllm").glob("[a-z]*") if path.name != "py.typed"}
    assert there <= named


def test_the_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    write_tiny(tmp_path / "model", "llama")
    (tmp_path / "wiki.train.raw").write_text("the thin man in the inn " * 200)
    monkeypatch.chdir(tmp_path)
    example = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert example
    small = {"meta-llama/Llama-3.2-1B": "model", "samples=64": "samples=4, window=40"}
    code = textwrap.dedent(example[1])
    for large, tiny in small.items():
        assert large in code
        code = code.replace(large, tiny)
    exec(code, {})
    assert "The sky is" in capsys.readouterr().out
