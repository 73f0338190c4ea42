"""benchmarks/serve.py on vLLM: figures for every load; a broken engine says why and delays no other."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.serving.vllm_process import environment

pytestmark = pytest.mark.vllm

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "serve.py"
LOAD = ["--concurrency", "1", "3", "--prompt", "8", "--answer", "4", "--prefill", "40", "--rounds", "1"]


def test_engines_under_load(tmp_path: Path) -> None:
    result = tmp_path / "serve.json"
    command = [sys.executable, str(SCRIPT), "mixed", f"absent={tmp_path / 'absent'}", "--shape", "tiny"]
    done = subprocess.run(
        [*command, *LOAD, "--together", "--json", str(result)],
        env=environment(compile=False),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 1, done.stderr[-3000:]
    mixed, absent = json.loads(result.read_text())["engines"]
    assert [(row["concurrency"], row["prompt"], row["answer"]) for row in mixed["rows"]] == [
        (1, 8, 4),
        (3, 8, 4),
        (1, 40, 1),
    ]
    for row in mixed["rows"]:
        assert row["ttft_ms"] > 0 and row["tokens_per_s"] > 0
        # Four tokens take no less than the first and the three after it.
        most = row["concurrency"] * row["answer"] * 1e3
        assert (
            row["tokens_per_s"] * (row["ttft_ms"] + row.get("tpot_ms", 0) * (row["answer"] - 1)) <= most * 1.5
        )
    assert "rows" not in absent and "absent" in absent["failed"]
