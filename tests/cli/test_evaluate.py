import json

from tests.cli.conftest import Tiny

from mixllm.cli import main


def evaluate(tiny: Tiny, *more: str) -> int:
    given = ["eval", tiny.out, "--reference", tiny.model, "--text", tiny.text, "--window", "32", *more]
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


def test_bad_input(tiny: Tiny, capsys):
    assert evaluate(tiny, "--samples", "100000") == 2
    assert evaluate(tiny, "--device", "gpu9") == 2
    assert main.run(["eval", str(tiny.out), "--reference", "/no/model", "--text", str(tiny.text)]) == 2
    assert main.run(["eval", str(tiny.model), "--reference", str(tiny.model), "--text", str(tiny.text)]) == 2
    assert capsys.readouterr().err.count("error: ") == 4
