"""benchmarks/architectures.py: what it finds of models that work and that can't; the page that lists them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "architectures.py"
RESULTS = ROOT / "benchmarks" / "results" / "architectures-cpu.json"


def test_a_type_that_works_one_in_part_and_one_that_is_refused(tmp_path: Path) -> None:
    command = [
        sys.executable,
        SCRIPT,
        "falcon",
        "ernie4_5_moe",
        "granitemoe",
        "rwkv",
        "--out",
        tmp_path / "found",
    ]
    subprocess.run(command, check=True, capture_output=True)
    found = json.loads((tmp_path / "found").read_text())["types"]
    assert found["falcon"]["layers"] == 8 and found["falcon"]["share"] == 1
    assert found["ernie4_5_moe"]["layers"] == 26 and found["granitemoe"]["share"] < 0.2
    assert "its code takes the weight of attention.output itself" in found["rwkv"]["refused"]
    for kind in ("falcon", "ernie4_5_moe", "granitemoe"):
        assert 0 < found[kind]["error"] < 1.5 * found[kind]["noise"], kind


def test_the_page_lists_what_the_results_have() -> None:
    found = json.loads(RESULTS.read_text())["types"]
    page = (ROOT / "docs" / "choosing.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \*\*(?:Dense|Mixtures|With state).*\| (.*) \|$", page, re.MULTILINE)
    assert len(rows) == 3
    assert re.findall(r"`(\w+)`", " ".join(rows)) == [kind for kind in found if "layers" in found[kind]]


def test_errors_are_those_of_rounding() -> None:
    found = json.loads(RESULTS.read_text())["types"]
    ratios = {kind: it["error"] / it["noise"] for kind, it in found.items() if "layers" in it}
    assert min(ratios.values()) == pytest.approx(0.5, abs=0.05)
    assert max(ratios.values()) == pytest.approx(1.2, abs=0.05)
    assert max(it["export"] for it in found.values() if "layers" in it) < 0.01
