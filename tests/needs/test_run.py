"""A run's own memory beside what --dry-run told of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mixllm.cli import main
from tests.models import write_tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a tokenizer and a text as small as these a run takes some 50 MB less before the model is read than
    most do."""
    root = tmp_path_factory.mktemp("needs")
    sizes = {"hidden_size": 384, "intermediate_size": 1536, "vocab_size": 16384, "head_dim": 64}
    write_tiny(root / "model", "llama", max_position_embeddings=1024, **sizes)
    (root / "text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 1500)
    return root / "model"


@pytest.mark.parametrize(
    "how",
    [
        [],
        ["--error", "rtn", "--rounding", "rtn", "--no-clip"],
        # What tunes takes more than what measures, so that this need not be done here.
        ["--bits", "4", "--tune", "1"],
        ["--bits", "4", "--tune", "1", "--tune-codes", "--tune-samples", "8"],
    ],
)
def test_a_run_takes_no_tenth_more_than_was_told(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], how: list[str]
) -> None:
    """In a process of its own, whose memory nothing else has touched."""
    arguments = [
        *("quantize", str(model), "-o", str(tmp_path / "out"), "--device", "cpu"),
        *("--calibration", str(model.with_name("text.txt")), "--samples", "4", "--window", "1024"),
        *how,
    ]
    assert main.run([*arguments, "--dry-run", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["memory_bytes"]
    process = subprocess.Popen(
        [sys.executable, "-m", "mixllm", *arguments, "--quiet"], env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    status, peak = Path(f"/proc/{process.pid}/status"), 0
    while process.poll() is None:
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
        peak = max(peak, sum(int(fields.get(name, "0 kB").split()[0]) for name in ("RssAnon", "RssShmem")))
        time.sleep(0.01)
    assert process.returncode == 0
    assert 0.75 * told < peak * 1024 < 1.1 * told
