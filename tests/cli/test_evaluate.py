import json
import sys
from pathlib import Path

import pytest
from tests.cli.conftest import Tiny

from mixllm.cli import main


def evaluate(tiny: Tiny, *more: str) -> int:
    given = ["eval", tiny.out, "--model", tiny.model, "--text", tiny.text, "--window", "32", *more]
    return main.run([str(argument) for argument in given])


def test_figures_against_the_float_model(tiny: Tiny, capsys):
    assert evaluate(tiny, "--samples", "5", "--json", "--quiet") == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert list(found) == ["float", "quantized"] and captured.err == ""
    assert found["quantized"]["windows"] == 5
    assert found["float"]["kl"] == 0 < found["quantized"]["kl"] < 0.5
    assert 0.5 < found["quantized"]["top1"] <= 1 == found["float"]["top1"]


def test_the_table(tiny: Tiny, capsys):
    assert evaluate(tiny, "--samples", "3") == 0
    captured = capsys.readouterr()
    assert "quantized" in captured.out and "±" in captured.out and "3 windows" in captured.out
    assert "measure" in captured.err


def test_one_window_has_no_standard_error(tiny: Tiny, capsys):
    assert evaluate(tiny, "--samples", "1", "--quiet") == 0
    out = capsys.readouterr().out
    assert out.endswith("\n1 window.\n") and "±" not in out and "nan" not in out


def test_bad_input(tiny: Tiny, capsys):
    assert evaluate(tiny, "--samples", "100000") == 2
    assert evaluate(tiny, "--device", "gpu9") == 2
    assert main.run(["eval", str(tiny.out), "--model", "/no/model", "--text", str(tiny.text)]) == 2
    assert main.run(["eval", str(tiny.model), "--model", str(tiny.model), "--text", str(tiny.text)]) == 2
    assert capsys.readouterr().err.count("error: ") == 4


TASK = """
task: letters
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{data}"}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{start}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list: [{{metric: acc}}]
"""
DOCUMENTS = [{"start": "The quick brown fox", "choices": [" jumps", " xyzzy"], "answer": 0}] * 3
DOCUMENTS += [{"start": "over the lazy", "choices": [" qqqq", " dog"], "answer": answer} for answer in (0, 1)]


@pytest.fixture
def letters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with one task of lm-eval, on data that lies beside it."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, DOCUMENTS)))
    (folder / "letters.yaml").write_text(TASK.format(data=folder / "data.jsonl"))
    return folder


def tasks(tiny: Tiny, *more: object) -> int:
    return main.run([str(argument) for argument in ("eval", tiny.out, "--tasks", *more)])


def test_tasks_alone(tiny: Tiny, letters: Path, capsys):
    assert tasks(tiny, "letters", "--include-path", letters, "--json", "--quiet") == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)["quantized"]["tasks"]["letters"]
    # Two documents differ in their answers only: exactly one of them is right.
    assert found["documents"] == 5 and found["acc"] in (0.2, 0.8) and found["acc_error"] > 0


def test_tasks_beside_the_float_model_and_a_text(tiny: Tiny, letters: Path, capsys):
    both = ("--tasks", "letters", "--include-path", str(letters), "--samples", "2")
    assert evaluate(tiny, *both, "--json", "--quiet") == 0
    found = json.loads(capsys.readouterr().out)
    assert [found[name]["tasks"]["letters"]["documents"] for name in ("float", "quantized")] == [2, 2]
    assert found["quantized"]["windows"] == 2
    assert evaluate(tiny, *both) == 0
    assert "letters  acc" in capsys.readouterr().out


def test_bad_tasks(tiny: Tiny, letters: Path, capsys):
    (letters / "data.jsonl").unlink()
    assert tasks(tiny, "letters", "--include-path", letters) == 2
    assert tasks(tiny, "letters,nope", "--include-path", letters) == 2
    assert tasks(tiny, "letters", "--include-path", "/no/such") == 2
    assert main.run(["eval", str(tiny.out)]) == 2
    assert main.run(["eval", str(tiny.out), "--text", str(tiny.text)]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 5
    assert "loading the data" in errors[0] and "'nope'" in errors[1] and "/no/such" in errors[2]


def test_tasks_without_lm_eval(tiny: Tiny, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.delitem(sys.modules, "mixllm.integrations.lm_eval", raising=False)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    assert tasks(tiny, "letters") == 2
    assert capsys.readouterr().err == "error: --tasks: needs lm_eval; pip install 'mixllm[lm-eval]'\n"
