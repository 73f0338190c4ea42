"""A run's own memory beside what --dry-run told of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.models import write_tiny

MIXLLM = (sys.executable, "-m", "mixllm")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize(
    "how",
    [
        [],
        ["--error", "rtn", "--rounding", "rtn", "--no-clip"],
        ["--tune", "1"],
        ["--tune", "2", "--tune-codes", "--tune-samples", "8"],
    ],
)
def test_a_run_takes_no_tenth_more_than_was_told(tmp_path: Path, how: list[str]) -> None:
    """In a process of its own, whose memory nothing else has touched; with a tokenizer and a text as small as
    these it takes some 50 MB less before the model is read than most do."""
    sizes = {"hidden_size": 384, "intermediate_size": 1536, "vocab_size": 16384, "head_dim": 64}
    write_tiny(tmp_path / "model", "llama", max_position_embeddings=1024, **sizes)
    (tmp_path / "text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 1500)
    arguments = [
        *("quantize", str(tmp_path / "model"), "-o", str(tmp_path / "out"), "--device", "cpu"),
        *("--calibration", str(tmp_path / "text.txt"), "--samples", "4", "--window", "1024"),
        *how,
    ]
    told = json.loads(mixllm_says(*arguments, "--dry-run", "--json"))["memory_bytes"]
    process = subprocess.Popen([*MIXLLM, *arguments, "--quiet"], env=ENVIRONMENT)
    status, peak = Path(f"/proc/{process.pid}/status"), 0
    while process.poll() is None:
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
        peak = max(peak, sum(int(fields.get(name, "0 kB").split()[0]) for name in ("RssAnon", "RssShmem")))
        time.sleep(0.01)
    assert process.returncode == 0
    assert 0.75 * told < peak * 1024 < 1.1 * told


def mixllm_says(*arguments: str) -> str:
    return subprocess.check_output([*MIXLLM, *arguments], text=True, env=ENVIRONMENT)
