"""benchmarks/accuracy_peers.py: a peer's weights beside mixllm's under its true bits; runs joined."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tests.models import write_tiny

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
FAST, HQQ, GPTQ = "fast, at most 4.5 bits", "hqq g64", "llm-compressor GPTQ g64"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, texts, and weights as two peers would have left them: off by a tenth, and untouched."""
    folder = tmp_path_factory.mktemp("peers")
    model = write_tiny(folder / "model", hidden_size=384, intermediate_size=328, num_hidden_layers=2)
    for text in ("train", "test"):
        words = [f"the {n * (3 if text == 'train' else 7) % 101} in the other" for n in range(300)]
        (folder / text).write_text(" ".join(words))
    (folder / "work").mkdir()
    blocks = {name: value for name, value in model.named_parameters() if ".layers." in name}
    torch.manual_seed(0)
    noisy = {name: value * (1 + 0.1 * torch.randn_like(value)) for name, value in blocks.items()}
    for name, tensors, bits in ((HQQ, noisy, 4.5), (GPTQ, blocks, 4.25)):
        facts = {"bits": bits, "payload_bits": 4, "seconds_to_make": 0, "version": "none 1"}
        save_file(
            {key: value.detach().contiguous() for key, value in tensors.items()},
            folder / "work" / f"{name}.safetensors",
            {"facts": json.dumps(facts)},
        )
    return folder


def run(folder: Path, out: str, *only: str) -> subprocess.CompletedProcess[str]:
    texts = ["--calibration", "train", "--samples", "3", "--text", "test", "--windows", "5", "--window", "33"]
    return subprocess.run(
        [
            *(sys.executable, str(BENCHMARKS / "accuracy_peers.py"), "model", *texts),
            *("--work", "work", "--device", "cpu", "--json", out, "--only", *only),
        ],
        cwd=folder, capture_output=True, text=True, timeout=600,
    )  # fmt: skip


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_lines_and_claims(folder: Path) -> None:
    done = run(folder, "all.json", HQQ, GPTQ, FAST)
    assert done.returncode == 0, done.stderr[-3000:]
    found = read(folder / "all.json")
    rows = {row["name"]: row for row in found["rows"]}
    assert list(rows) == ["float", HQQ, GPTQ, FAST]
    assert rows[GPTQ]["kl"] == pytest.approx(0, abs=1e-6)
    assert rows[HQQ]["kl"] > 1e-4 and rows[FAST]["kl"] > 1e-5
    # One 8-bit row more would be about a thousandth of a bit.
    assert 4.49 < rows[FAST]["bits"] <= 4.5
    (claim,) = found["claims"]  # GPTQ has fewer bits, so it is no match
    assert (claim["better"], claim["worse"]) == (FAST, HQQ)
    assert claim["kl"][0] == pytest.approx(rows[HQQ]["kl"] - rows[FAST]["kl"])
    assert claim["holds"] == (claim["kl"][0] > 2 * claim["kl"][1])


def test_runs_joined(folder: Path) -> None:
    assert run(folder, "first.json", HQQ).returncode == run(folder, "second.json", FAST).returncode == 0
    assert not read(folder / "first.json")["claims"] and not read(folder / "second.json")["claims"]
    command = [sys.executable, str(BENCHMARKS / "accuracy_join.py"), "first.json", "second.json"]
    subprocess.run([*command, "-o", "joined.json"], cwd=folder, check=True, timeout=120)
    (claim,) = read(folder / "joined.json")["claims"]
    assert (claim["better"], claim["worse"]) == (FAST, HQQ)


def test_a_joined_line_says_what_it_was_tuned_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from accuracy_join import tuned_on

    run = {"tuning": "3 windows of train"}
    assert tuned_on(run, {"name": f"{FAST}, swept, tuned"})["tuning"] == run["tuning"]
    assert "tuning" not in tuned_on(run, {"name": FAST})


def test_a_peer_that_fails_stops_no_other(folder: Path) -> None:
    """Without llm-compressor its line is missing, and the exit says so."""
    done = run(folder, "failed.json", "llm-compressor AWQ g64", HQQ)
    assert done.returncode == 1
    assert "llm-compressor AWQ g64" in done.stderr.splitlines()[-1]
    assert "No module named" in done.stderr
    assert [row["name"] for row in read(folder / "failed.json")["rows"]] == ["float", HQQ]


def test_weights_of_a_layer_missing(folder: Path) -> None:
    name = "hqq g128"
    path = folder / "work" / f"{name}.safetensors"
    save_file({"model.layers.0.input_layernorm.weight": torch.ones(384)}, path, {"facts": "{}"})
    done = run(folder, "missing.json", name)
    path.unlink()
    assert done.returncode == 1
    assert f"{path.name}: model.layers.0.mlp.down_proj.weight is missing" in done.stderr


def test_true_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """72 inputs are two groups of 64, or 9/8 where groups go on in the next row."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from peers_weights import PEERS, true_bits

    model = torch.nn.ModuleDict({"layers": torch.nn.ModuleList([torch.nn.Linear(72, 64, bias=False)])})
    assert true_bits(PEERS["llm-compressor GPTQ g64"], model) == 4 + 2 * 16 / 72
    assert true_bits(PEERS["llm-compressor AWQ g64"], model) == 4 + 2 * 20 / 72
    assert true_bits(PEERS["hqq g64"], model) == 4 + 9 / 8 * 32 / 72
