import json
from pathlib import Path

from tests.cli.conftest import Tiny

from mixllm.cli import main
from mixllm.config import Format
from mixllm.plan import Plan
from mixllm.records import PLAN, SALIENCE


def inspect(capsys, *arguments: object) -> str:
    assert main.run(["inspect", *map(str, arguments)]) == 0
    out: str = capsys.readouterr().out
    return out


def test_a_checkpoint_is_shown_with_its_real_size(tiny: Tiny, capsys):
    found = json.loads(inspect(capsys, tiny.out, "--json"))
    size = (tiny.out / "model.safetensors").stat().st_size
    assert found["checkpoint_bytes"] == size
    planned = json.loads(inspect(capsys, tiny.out / PLAN, "--json"))
    assert found["payload_bits"] == planned["payload_bits"] and found["by_kind"] == planned["by_kind"]
    assert abs(planned["checkpoint_bytes"] / size - 1) < 0.01
    assert 0.8 < found["other_bytes"] / planned["other_bytes"] < 1.2
    text = inspect(capsys, tiny.out)
    assert "weights group_int, rotation hadamard, activations token" in text and "(predicted)" not in text


def test_a_terminal_of_80_columns_breaks_no_line_but_that_of_the_format(tiny: Tiny, capsys):
    for path in (tiny.out, tiny.out / PLAN, tiny.out / SALIENCE):
        lines = inspect(capsys, path).splitlines()
        assert [line for line in lines if len(line) > 80 and not line.startswith("format")] == []


def test_a_plan_is_shown_with_how_it_was_made(tiny: Tiny, capsys):
    text = inspect(capsys, tiny.out / PLAN)
    assert text.startswith("plan: 5 bits, global, fisher of gptq errors")
    assert "(predicted)" in text and "q_proj" in text


def test_a_uniform_plan_needed_no_salience(tmp_path: Path, capsys):
    Plan.uniform({"layers.0.q_proj": (8, 128)}, 8, Format()).save(tmp_path / "plan.json")
    assert "8 bits, global, no salience needed" in inspect(capsys, tmp_path / "plan.json")


def test_a_salience_is_shown_by_kind_of_layer(tiny: Tiny, capsys):
    text = inspect(capsys, tiny.out / SALIENCE)
    assert "salience: fisher of gptq errors, 160 tokens" in text and "down_proj" in text
    found = json.loads(inspect(capsys, tiny.out / SALIENCE, "--json"))
    assert found["widths"] == [4, 8]
    assert all(loss["4"] > loss["8"] > 0 for loss in found["loss"].values())


def test_a_directory_that_is_no_checkpoint(tiny: Tiny, tmp_path: Path, capsys):
    assert main.run(["inspect", str(tiny.model)]) == 2
    assert "no quantization_config of mixllm" in capsys.readouterr().err
    assert main.run(["inspect", str(tmp_path)]) == 2
    assert "config.json: missing" in capsys.readouterr().err
