import json
from pathlib import Path

import pytest
from tests.saliences import SHAPES, random_salience

from mixllm.cli import main
from mixllm.config import PROFILES
from mixllm.plan import Plan, choose
from mixllm.records import PLAN, SALIENCE


@pytest.fixture
def salience(tmp_path: Path) -> Path:
    random_salience(format=PROFILES["paper"]).save(tmp_path / "salience")
    return tmp_path / "salience"


def test_a_plan_for_a_budget(salience: Path, tmp_path: Path, capsys):
    assert main.run(["plan", str(salience), "--bits", "5", "-o", str(tmp_path / "plan.json")]) == 0
    out = capsys.readouterr().out
    plan = Plan.load(tmp_path / "plan.json")
    assert plan.budget == 5 and plan.format == PROFILES["paper"]
    assert "plan: 5 bits, global, fisher of gptq errors" in out
    assert f"{plan.payload_bits:.4f} bits a weight" in out
    assert "q_proj" in out and "down_proj" in out


def test_the_other_rule_and_scope(salience: Path, tmp_path: Path, capsys):
    flags = ["--channels", "25", "--scope", "random", "--seed", "4", "-o", str(tmp_path / "plan.json")]
    assert main.run(["plan", str(salience), *flags]) == 0
    assert "plan: 25 % of channels, random, seed 4" in capsys.readouterr().out
    plan = Plan.load(tmp_path / "plan.json")
    assert (plan.rule, plan.budget, plan.scope, plan.seed) == ("channels", 25, "random", 4)


def test_a_choice_among_the_widths_that_were_measured_or_some_of_them(tmp_path: Path, capsys):
    random_salience(widths=(3, 4, 6, 8)).save(tmp_path / "salience")
    for flags, widths in ([], (3, 4, 6, 8)), (["--widths", "3,8"], (3, 8)):
        assert main.run(["plan", str(tmp_path / "salience"), "--bits", "3.9", "--json", *flags]) == 0
        rows = {int(width): n for width, n in json.loads(capsys.readouterr().out)["rows"].items()}
        assert rows[3] > 0 and sum(rows.values()) == 26 and {w for w in rows if rows[w]} <= set(widths)
    assert main.run(["plan", str(tmp_path / "salience"), "--bits", "4.4", "--widths", "4,5"]) == 2
    assert "not for 5" in capsys.readouterr().err
    assert main.run(["plan", str(tmp_path / "salience"), "--bits", "4"]) == 0
    assert "5- to 8-bit" not in (out := capsys.readouterr().out) and "6- to 8-bit rows" in out


def test_json_is_the_report(salience: Path, capsys):
    assert main.run(["plan", str(salience), "--bits", "6", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert 5.5 < found["payload_bits"] <= 6 < found["bits"]
    assert found["by_kind"]["q_proj"]["rows"] == 16 and set(found["by_depth"]) == {"0", "1"}


def checkpoint(path: Path, bits: float) -> Path:
    (path / PLAN).parent.mkdir(parents=True)
    salience = random_salience()
    salience.save(path / SALIENCE)
    choose(salience, bits=bits).save(path / PLAN)
    return path


def test_a_checkpoint_keeps_what_another_budget_needs(tmp_path: Path, capsys):
    out = checkpoint(tmp_path / "out", 5)
    assert main.run(["plan", str(out), "--bits", "6", "--json"]) == 0
    assert 5.5 < json.loads(capsys.readouterr().out)["payload_bits"] <= 6


def test_differences_of_two_plans(tmp_path: Path, capsys):
    first, second = checkpoint(tmp_path / "a", 5), checkpoint(tmp_path / "b", 7)
    assert main.run(["plan", str(first), "--diff", str(second / PLAN)]) == 0
    text = capsys.readouterr().out
    assert main.run(["plan", str(first), "--diff", str(second), "--json"]) == 0
    changes = json.loads(capsys.readouterr().out)
    assert changes and all(change["raised"] > 0 == change["lowered"] for change in changes.values())
    assert set(changes) <= set(SHAPES)
    raised = sum(change["raised"] for change in changes.values())
    assert f"{len(changes)} modules differ: {raised} rows to more bits, 0 to fewer" in text


def test_a_plan_is_no_salience(tmp_path: Path, capsys):
    out = checkpoint(tmp_path / "out", 5)
    assert main.run(["plan", str(out / PLAN), "--bits", "6"]) == 2
    (out / SALIENCE).unlink()
    assert main.run(["plan", str(out), "--bits", "6"]) == 2
    assert f"{out}: keeps no {SALIENCE}" in capsys.readouterr().err


def test_what_is_no_place_of_a_salience(tmp_path: Path, capsys):
    assert main.run(["plan", str(tmp_path / "nothing")]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path}/nothing: no such file or directory\n"
    (tmp_path / "float").mkdir()
    for also in ([], ["--diff", str(tmp_path / "float")]):
        assert main.run(["plan", str(tmp_path / "float"), *also]) == 2
        assert "float: keeps no records of mixllm; give a directory that" in capsys.readouterr().err
