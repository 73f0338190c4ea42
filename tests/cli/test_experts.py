"""The commands on a mixture of experts, from the float model to an answer."""

import json
from pathlib import Path

from tests.cli.conftest import BUDGET, TEXT
from tests.models import tiny_config, write_tiny

from mixllm.cli import main


def run(*arguments: object) -> int:
    return main.run([str(argument) for argument in arguments])


def test_a_mixture_from_quantize_to_generate(tmp_path: Path, capsys):
    model, out, text = tmp_path / "model", tmp_path / "out", tmp_path / "text.txt"
    write_tiny(model, "mixtral")
    text.write_text(TEXT)
    assert run("quantize", model, "-o", out, "--calibration", text, *BUDGET) == 0
    told = " ".join(capsys.readouterr().err.split())
    assert "experts saw too few calibration tokens" in told and "experts.0" in told
    assert (out / "mixllm/log.jsonl").read_text().count("saw too few") == 1

    assert run("inspect", out, "--json") == 0
    kinds = json.loads(capsys.readouterr().out)["by_kind"]
    config = tiny_config("mixtral")
    experts = config.num_hidden_layers * config.num_local_experts
    assert {kind: kinds[kind]["rows"] for kind in ("w1", "w2", "w3")} == {
        "w1": experts * config.intermediate_size,
        "w2": experts * config.hidden_size,
        "w3": experts * config.intermediate_size,
    }
    assert run("inspect", out) == 0
    assert "w1" in capsys.readouterr().out

    assert run("plan", out, "--bits", "4.5", "-o", tmp_path / "plan.json") == 0
    assert run("generate", out, "-p", "The", "--max-tokens", "3", "--dtype", "float32") == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("The")
