import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.saliences import SHAPES, random_salience

from mixllm.config import PROFILES, Format
from mixllm.errors import MixllmError
from mixllm.plan import ModulePlan, Plan, choose

FIELDS = ("rule", "budget", "scope", "seed", "score", "error", "widths", "format", "other_bytes")


def same(a: Plan, b: Plan) -> bool:
    rows = all(torch.equal(module.widths, b.modules[name].widths) for name, module in a.modules.items())
    lengths = all(module.in_features == b.modules[name].in_features for name, module in a.modules.items())
    fields = all(getattr(a, field) == getattr(b, field) for field in FIELDS)
    return rows and lengths and fields and list(a.modules) == list(b.modules)


@pytest.mark.parametrize("budget", [{"bits": 4}, {"bits": 5.5}, {"channels": 33}, {"bits": 8}])
def test_a_saved_plan_comes_back(tmp_path: Path, budget: dict[str, float]):
    plan = choose(random_salience(format=PROFILES["paper"]), scope="local", seed=7, **budget)
    plan.save(tmp_path / "plan.json")
    loaded = Plan.load(tmp_path / "plan.json")
    assert same(plan, loaded)
    loaded.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "plan.json").read_bytes()


def test_the_file_is_for_people(tmp_path: Path):
    modules = {
        "layers.0.q_proj": ModulePlan(64, torch.tensor([8, 8, 8, 4, 8, 4], dtype=torch.uint8)),
        "layers.0.k_proj": ModulePlan(64, torch.tensor([4, 4], dtype=torch.uint8)),
    }
    Plan(modules, rule="bits", budget=6.0).save(tmp_path / "plan.json")
    text = (tmp_path / "plan.json").read_text()
    assert '"layers.0.q_proj": {"in_features": 64, "out_features": 6, "rows": {"8": "0-2,4"}},\n' in text
    assert '"layers.0.k_proj": {"in_features": 64, "out_features": 2, "rows": {"8": ""}}\n' in text
    assert json.loads(text)["totals"] == {"rows": 8, "rows8": 4, "payload_bits": 6.0}


def test_rows_edited_by_hand_count(tmp_path: Path):
    path = tmp_path / "plan.json"
    Plan.uniform({"m": (10, 64)}, 4, Format()).save(path)
    path.write_text(path.read_text().replace('"8": ""', '"8": "2, 4-5"'))
    plan = Plan.load(path)
    assert plan.modules["m"].rows(8).tolist() == [2, 4, 5] and plan.payload_bits == pytest.approx(5.2)


@pytest.mark.parametrize("width", [4, 8])
def test_a_uniform_plan_needs_no_salience(tmp_path: Path, width: int):
    plan = Plan.uniform(SHAPES, width, PROFILES["fast"], other_bytes=3)
    assert plan.payload_bits == width and plan.score is None
    assert {name: (m.out_features, m.in_features) for name, m in plan.modules.items()} == SHAPES
    counts = plan.counts()["model.layers.1.self_attn.q_proj"]
    assert counts.rows == {4: 9, 8: 0} if width == 4 else {4: 0, 8: 9}
    plan.save(tmp_path / "plan.json")
    assert same(plan, Plan.load(tmp_path / "plan.json"))


@given(st.lists(st.sampled_from([4, 8]), min_size=1, max_size=40))
def test_rows_and_counts_agree(widths: list[int]):
    plan = Plan({"m": ModulePlan(16, torch.tensor(widths, dtype=torch.uint8))}, rule="bits", budget=8)
    module, count = plan.modules["m"], plan.counts()["m"]
    assert count.rows == {4: widths.count(4), 8: widths.count(8)}
    assert (count.out_features, count.in_features) == (len(widths), 16)
    assert sorted([*module.rows(4).tolist(), *module.rows(8).tolist()]) == list(range(len(widths)))


def put(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda data: data.update({key: value})


def put_rows(rows: Any) -> Callable[[dict[str, Any]], None]:
    return lambda data: data["modules"]["m"].update(rows=rows)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("surplus", 1), "surplus: Extra inputs are not permitted"),
        (put("version", 2), "version: "),
        (lambda data: data.pop("rule"), "rule: Field required"),
        (lambda data: data.pop("modules"), "no modules in it; it is not a plan that mixllm wrote"),
        (put("rule", "guess"), "rule: "),
        (put("widths", [2, 4, 8]), "widths: 2 is none of the format's, 3, 4, 5, 6 and 8"),
        (put("widths", [8, 4]), "widths: they must be in order, the narrowest first, each once"),
        (put("widths", []), "widths: "),
        (put("format", {"weight_scale": "column"}), "format.weight_scale: "),
        (put("modules", {}), "modules: "),
        (put("modules", {"m": {"in_features": 0, "out_features": 1, "rows": {}}}), "modules.m.in_features: "),
        (
            put("modules", {"m": {"in_features": 8, "out_features": 10**15, "rows": {}}}),
            "modules.m.out_features: ",
        ),
        (put_rows({"8": "0-12"}), "m: rows: 8: row 12 is out of range, there are 10 rows"),
        (put_rows({"8": "3,2"}), 'm: rows: 8: "2" is out of order'),
        (put_rows({"8": "x"}), 'm: rows: 8: "x" is not a row'),
        (put_rows({"6": "1"}), "m: rows: 6 is none of the plan's widths, 4 and 8"),
        (put_rows({"4": "1-3", "8": "2"}), "m: rows: row 2 is given two widths"),
    ],
)
def test_a_wrong_plan_is_one_line(tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str):
    path = tmp_path / "plan.json"
    Plan.uniform({"m": (10, 64)}, 4, Format()).save(path)
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    with pytest.raises(MixllmError) as error:
        Plan.load(path)
    assert str(error.value).startswith(f"{path}: {message}") and "\n" not in str(error.value)


def test_files_that_are_no_plans(tmp_path: Path):
    path = tmp_path / "plan.json"
    for text in ("", "[]", "{", "\x00"):
        path.write_text(text)
        with pytest.raises(MixllmError, match=r"plan\.json"):
            Plan.load(path)
    path.unlink()
    with pytest.raises(MixllmError, match=r"plan\.json"):
        Plan.load(path)
