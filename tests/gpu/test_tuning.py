"""Tuning on a GPU: as the command does it, and its steps as graphs against the same steps without."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from mixllm.blocks import Decoder
from mixllm.config import PROFILES, QuantConfig
from mixllm.format.rounded import Rounded
from mixllm.pipeline import quantize
from mixllm.progress import Silent
from mixllm.source import open_source
from mixllm.tuning import step as module
from mixllm.tuning import tune_scales
from mixllm.tuning.graphs import Graphs
from tests.models import MIXTURES, VOCAB, write_tiny
from tests.tuning.test_tune import rounded_model

pytestmark = pytest.mark.gpu

CUDA = torch.device("cuda")
FORMAT = PROFILES["fast"]


@pytest.fixture(autouse=True)
def same_sums() -> Iterator[None]:
    """Attention's backward pass adds in one order."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("codes", [False, True])
def test_a_checkpoint_is_tuned(tmp_path: Path, codes: bool) -> None:
    write_tiny(tmp_path / "model", "llama")
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog, and then the other way round. " * 60)
    config = QuantConfig(calibration=str(text), samples=6, window=40, bits=5.0)
    tuned = config.model_copy(update={"tune": 3, "tune_codes": codes})
    found = {}
    for name, how in (("plain", config), ("tuned", tuned)):
        quantize(str(tmp_path / "model"), tmp_path / name / "out", how, device="cuda")
        found[name] = load_file(tmp_path / name / "out/model.safetensors")
    assert found["plain"].keys() == found["tuned"].keys()
    assert any(not torch.equal(found["plain"][name], found["tuned"][name]) for name in found["plain"])


def learned(
    path: Path, layers: dict[str, Rounded], ids: Tensor, monkeypatch: pytest.MonkeyPatch, *, plain: bool
) -> tuple[dict[str, Rounded], Graphs]:
    """Five passes of a step of four windows and one of three."""
    made: list[Graphs] = []

    def graphs(device: torch.device) -> Graphs:
        made.append(Graphs(device))
        made[-1].plain |= plain
        return made[-1]

    monkeypatch.setattr(module, "Graphs", graphs)
    decoder = Decoder.open(open_source(str(path), path), CUDA, torch.float32)
    found = tune_scales(
        decoder, ids, layers, FORMAT, epochs=5, calibration=ids, seed=0, progress=Silent()
    )  # fmt: skip
    return found, made[0]


@pytest.mark.parametrize(
    ("architecture", "fields"),
    [
        ("llama", {}),
        ("qwen3", {}),  # norms of queries and keys
        ("gemma3_text", {"final_logit_softcapping": 3.0}),  # sliding windows beside full attention
        ("mistral", {}),
        *((name, {}) for name in MIXTURES),
    ],
)
def test_replayed_steps_are_the_steps(
    architecture: str, fields: dict[str, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tiny(tmp_path, architecture, **fields)
    _, layers = rounded_model(tmp_path, FORMAT)
    ids = torch.randint(4, VOCAB, (7, 41), generator=torch.Generator().manual_seed(2))
    plain, _ = learned(tmp_path, layers, ids, monkeypatch, plain=True)
    found, graphs = learned(tmp_path, layers, ids, monkeypatch, plain=False)
    # A mixture's experts ask which tokens they have, and wait for the answer.
    assert graphs.plain == (architecture in MIXTURES)
    assert set(graphs._captured) == (set() if graphs.plain else {"_forward", "_backward"})
    moved = torch.cat([(plain[n].scales[:, 0].cpu() / layers[n].scales[:, 0]).log() for n in layers])
    off = torch.cat([(found[n].scales[:, 0] / plain[n].scales[:, 0]).cpu().log() for n in layers])
    print(f"{architecture}: scales moved {float(moved.abs().mean()):.1e}, off {float(off.abs().mean()):.1e}")
    assert float(off.abs().mean()) < 0.01 * float(moved.abs().mean())
    other = torch.cat([(found[n].codes != plain[n].codes).flatten() for n in layers]).float().mean()
    assert float(other) < 1e-4


def test_the_memory_of_graphs_goes_when_tuning_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tiny(tmp_path, "llama")
    _, layers = rounded_model(tmp_path, FORMAT)
    decoder = Decoder.open(open_source(str(tmp_path), tmp_path), CUDA, torch.float32)
    ids = torch.randint(4, VOCAB, (8, 30), generator=torch.Generator().manual_seed(2))
    taken = []
    gc.collect()
    gc.disable()
    try:
        for _ in range(3):
            found = tune_scales(
                decoder, ids, layers, FORMAT, epochs=3, calibration=ids, seed=0, progress=Silent()
            )  # fmt: skip
            del found
            taken.append(torch.cuda.memory_allocated())
    finally:
        gc.enable()
    # The first time leaves what libraries and caches keep.
    assert taken[1] == taken[2]
