import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from mixllm.records import MEASURED
from mixllm.report.findings import gather
from mixllm.report.tables import worst_table
from tests.cli.conftest import BUDGET, Tiny
from tests.report.conftest import run

CHROMIUM = shutil.which("chromium")
SHORT = ("--window", 100, "--samples", 2)


@pytest.fixture(scope="module")
def measured(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkpoint, measured beside a uniform one."""
    root = tmp_path_factory.mktemp("report")
    out, other = root / "mixed", root / "uniform"
    shutil.copytree(tiny.out, out)
    assert (
        run(
            "quantize",
            tiny.model,
            "-o",
            other,
            "--bits",
            4,
            "--rounding",
            "rtn",
            "--no-clip",
            "--quiet",
            *SHORT,
        )
        == 0
    )
    how = ["--model", tiny.model, "--text", tiny.text, "--window", 32, "--samples", 5, "--quiet"]
    assert run("report", out, "--also", other, *how, "-p", "The <b>fox</b> &") == 0
    return out


def page(out: Path) -> str:
    return (out / "mixllm/report.html").read_text()


def test_the_page_has_every_figure_of_the_json(measured: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("report", measured, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    text = html.unescape(page(measured))
    for row in found["measured"]["rows"][1:]:
        assert f"{row['kl']:.4f} ± {row['kl_error']:.4f}" in text and row["name"] in text
    for point in found["curve"]:
        assert f"{point['loss']:.3g}" in text
    assert len(found["layers"]) == 3 * 7
    assert {f"{layer['error']:.3g}" in text for layer in found["layers"]} == {True}
    assert found["made"]["command"] in text and found["samples"][0]["texts"]["float"].strip() in text
    assert found["chosen"]["bits"] == pytest.approx(found["sizes"]["payload_bits"])
    assert abs(found["sizes"]["payload_bits"] - 5) < 0.05


def test_the_curve_falls_and_passes_through_the_choice(
    tiny: Tiny, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("report", tiny.out, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    losses = [point["loss"] for point in found["curve"]]
    assert losses == sorted(losses, reverse=True)
    at_five = next(point for point in found["curve"] if abs(point["bits"] - 5) < 0.02)
    assert at_five == pytest.approx(found["chosen"])
    assert sum(layer["loss"] for layer in found["layers"]) == pytest.approx(found["chosen"]["loss"])
    assert found["measured"] is None and found["samples"] == []


def test_nothing_from_outside_and_ids_are_unique(measured: Path) -> None:
    text = page(measured)
    assert "<script" not in text
    links = re.findall(r'(?:src|href)="([^"]+)"', text)
    assert links and all(link.startswith("#") for link in links)
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    pointed = [link[1:] for link in links] + re.findall(r"url\(#([^)]+)\)", text)
    labels = " ".join(re.findall(r'aria-(?:labelledby|describedby)="([^"]+)"', text)).split()
    assert {*pointed, *labels} <= set(ids)
    assert not re.search(r"#0[1-4]0[1-4]0[1-4]", text)  # stand-in colours


def test_text_of_a_model_or_user_is_no_markup(measured: Path) -> None:
    assert "<b>fox</b>" not in page(measured) and "&lt;b&gt;fox&lt;/b&gt; &amp;" in page(measured)


def test_a_uniform_checkpoint_without_salience(tiny: Tiny, tmp_path: Path) -> None:
    out = tmp_path / "eight"
    made = ("--bits", 8, "--rounding", "rtn", "--no-clip", "--quiet", *SHORT)
    assert run("quantize", tiny.model, "-o", out, *made) == 0
    assert run("report", out, "-o", tmp_path / "page.html") == 0
    text = (tmp_path / "page.html").read_text()
    assert "8 bits for every row" in text and "Bits against loss" not in text and "100.0 %" in text


def test_what_is_known_of_no_layer_has_no_column(tiny: Tiny, tmp_path: Path) -> None:
    out = tmp_path / "nearest"
    made = ("--rounding", "rtn", "--no-clip", "--error", "rtn", "--calibration", tiny.text, "--samples", 2)
    assert run("quantize", tiny.model, "-o", out, *made, "--window", 32, "--quiet") == 0
    tables = [worst_table(gather(of).layers, "8-bit rows") for of in (tiny.out, out)]
    assert [table and table.columns for table in tables] == [
        ("layer", "loss", "8-bit rows %", "rounding error", "outliers"),
        ("layer", "loss", "8-bit rows %"),
    ]
    assert all(len(row) == len(table.columns) for table in tables if table for row in table.rows)


def test_comparison(measured: Path, tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    others = [measured, measured.with_name("uniform"), tiny.model]
    how = ["--model", tiny.model, "--text", tiny.text, "--window", 32, "--samples", 4, "--quiet"]
    assert run("compare", *others, *how, "-o", tmp_path / "page.html", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in found["rows"]] == ["float", "mixed", "uniform", "model"]
    same = found["rows"][-1]
    assert same["kl"] == 0 and same["top1"] == 1 and same["bits"] == 32 and same["payload_bits"] is None
    difference = found["differences"][0]
    assert difference["kl"] == pytest.approx(found["rows"][2]["kl"] - found["rows"][1]["kl"])
    assert difference["kl"] > 0 < difference["kl_error"]
    assert found["rows"][1]["bits"] > found["rows"][2]["bits"] > 4
    assert "Difference from mixed" in (tmp_path / "page.html").read_text()
    assert run("compare", *others[:2], *how) == 0
    assert "Difference from mixed" in capsys.readouterr().out
    assert run("compare", measured, measured, *how) == 2


@pytest.mark.parametrize(
    ("widths", "bits", "wide"),
    [("3,4", "3.5", "rows of more than 4 bits"), ("3,4,5,6,8", "4.5", "5- to 8-bit rows")],
)
def test_rows_are_called_by_their_widths(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str], widths: str, bits: str, wide: str
) -> None:
    out = tmp_path / "out"
    how = ["--calibration", tiny.text, "--widths", widths, "--bits", bits, *SHORT, "--quiet"]
    assert run("quantize", tiny.model, "-o", out, *how) == run("report", out) == run("inspect", out) == 0
    assert f"<dt>{wide}</dt>" in page(out) and f"## {wide} by kind" in (out / "README.md").read_text()
    assert " 0 of " not in re.sub(r".*-bit rows  .*", "", capsys.readouterr().out)


def test_the_card(measured: Path, tiny: Tiny) -> None:
    from huggingface_hub import ModelCard

    card = ModelCard.load(measured / "README.md")
    assert card.data.library_name == "transformers" and "mixllm" in card.data.tags
    kept = json.loads((measured / MEASURED).read_text())
    assert f"{kept['rows'][1]['kl']:.4f}" in card.text and "## Measured" in card.text
    assert "## Measured" not in (tiny.out / "README.md").read_text()


def test_the_card_keeps_the_licence(tiny: Tiny, tmp_path: Path) -> None:
    from huggingface_hub import ModelCard

    model = tmp_path / "licensed"
    shutil.copytree(tiny.model, model)
    (model / "README.md").write_text("---\nlicense: apache-2.0\ntags: [chat]\n---\n# Model\n")
    assert run("quantize", model, "-o", tmp_path / "out", "--calibration", tiny.text, "--quiet", *BUDGET) == 0
    card = ModelCard.load(tmp_path / "out/README.md")
    assert card.data.license == "apache-2.0" and "chat" not in card.data.tags


def test_the_command_on_the_page_can_be_typed_and_no_error_is_told_of_one_window(
    tiny: Tiny, tmp_path: Path
) -> None:
    out = tmp_path / "with a space"
    shutil.copytree(tiny.out, out)
    assert run("report", out) == 0
    assert "mixllm report 'with a space' --model FLOAT" in html.unescape(page(out))
    how = ["--model", tiny.model, "--text", tiny.text, "--window", 32, "--quiet"]
    for samples, told in ((1, False), (2, True)):
        assert run("report", out, *how, "--samples", samples) == 0
        assert ("standard error over windows" in page(out)) is told
        assert run("compare", out, *how, "--samples", samples, "-o", tmp_path / "c.html") == 0
        assert ("standard error over windows" in (tmp_path / "c.html").read_text()) is told


@pytest.mark.browser
@pytest.mark.parametrize("width", [360, 1280])
def test_in_a_browser(measured: Path, tmp_path: Path, width: int) -> None:
    """Nothing is wider than the screen and the console is silent."""
    assert CHROMIUM, "install chromium, or leave these tests out: -m 'not browser'"
    fits = "document.documentElement.scrollWidth <= document.documentElement.clientWidth"
    probe = f"<script>document.title = innerWidth + ({fits} ? ' fits' : ' overflows')</script></html>"
    text = (
        page(measured).replace("</html>", probe).replace("style-src", "script-src 'unsafe-inline'; style-src")
    )
    # A frame of the width: chromium's own window is never narrower than 500 pixels.
    (tmp_path / "page.html").write_text(text)
    take = "document.title = frames[0].document.title"
    frame = f"<iframe src='page.html' width={width} height=900 onload='{take}'>"
    (tmp_path / "frame.html").write_text(f"<!doctype html>{frame}</iframe>")
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files"]
    flags += ["--enable-logging=stderr", "--virtual-time-budget=5000", f"--user-data-dir={tmp_path}/profile"]
    command = [CHROMIUM, *flags, "--dump-dom", f"file://{tmp_path}/frame.html"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert f"<title>{width} fits</title>" in done.stdout
    assert "CONSOLE" not in done.stderr


def test_json_writes_a_page_only_where_one_is_asked_for(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("report", tiny.out, "--json", "-o", tmp_path / "page.html") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["made"]["command"] in html.unescape((tmp_path / "page.html").read_text())
    assert not (tiny.out / "mixllm/report.html").exists()
