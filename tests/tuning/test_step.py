"""A step of tuning, captured and replayed, is the step: on a tape in place of a GPU."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mixllm.config import PROFILES, Format
from mixllm.format.rounded import Rounded
from mixllm.tuning.graphs import PLAIN, Graphs
from mixllm.tuning.step import Step
from mixllm.tuning.tune import open_blocks
from tests.models import ARCHITECTURES, MIXTURES, VOCAB, write_tiny
from tests.tuning.graph_tape import Tape, use_tapes
from tests.tuning.test_tune import rounded_model


def learned(
    path: Path, format: Format, batches: list[Tensor], *, codes: bool, replayed: bool
) -> tuple[dict[str, Rounded], int]:
    """The layers after a step for each batch of windows, and how many graphs were made."""
    decoder, layers = rounded_model(path, format)
    generator = torch.Generator().manual_seed(7)
    calibration = batches[0] if codes else None
    tapes: list[Tape] = []
    with ExitStack() as stack, pytest.MonkeyPatch.context() as monkeypatch:
        blocks = open_blocks(stack, decoder, layers, format, calibration)
        step = Step(decoder, blocks, len(batches[0]))
        if replayed:
            tapes = use_tapes(monkeypatch)
            step._graphs = Graphs(torch.device("cuda"))
        for number, ids in enumerate(batches):
            target = torch.randn(*ids.shape, decoder.hidden_size, generator=generator)
            step(ids, target, 1 - number / len(batches))
        found = {n: layer.result(layers[n]) for _, linears, _ in blocks for n, layer in linears.items()}
    assert all(tape.replays for tape in tapes)
    return found, len(tapes)


def windows(count: int, seed: int) -> Tensor:
    return torch.randint(4, VOCAB, (count, 19), generator=torch.Generator().manual_seed(seed))


def assert_same(path: Path, format: Format, batches: list[Tensor], *, codes: bool, graphs: int) -> None:
    plain, _ = learned(path, format, batches, codes=codes, replayed=False)
    found, made = learned(path, format, batches, codes=codes, replayed=True)
    assert made == graphs
    for name, layer in plain.items():
        assert torch.equal(layer.scales, found[name].scales) and torch.equal(layer.codes, found[name].codes)


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, *MIXTURES])
def test_models_are_captured_but_mixtures_whose_experts_wait(architecture: str, tmp_path: Path) -> None:
    write_tiny(tmp_path, architecture)
    batches = [windows(2, seed) for seed in range(PLAIN + 3)]
    graphs = 0 if architecture in MIXTURES else 2
    assert_same(tmp_path, PROFILES["fast"], batches, codes=True, graphs=graphs)


@settings(max_examples=8)
@given(
    whole=st.integers(1, 3),
    counts=st.lists(st.integers(1, 3), max_size=6),
    codes=st.booleans(),
    profile=st.sampled_from(["fast", "paper"]),
)
def test_steps_of_fewer_windows_come_between(
    whole: int, counts: list[int], codes: bool, profile: str
) -> None:
    batches = [windows(min(whole, count), seed) for seed, count in enumerate([whole, *counts])]
    graphs = 2 * (sum(len(batch) == whole for batch in batches) > PLAIN)
    with TemporaryDirectory() as path:
        write_tiny(Path(path), "llama", num_hidden_layers=2)
        assert_same(Path(path), PROFILES[profile], batches, codes=codes, graphs=graphs)
