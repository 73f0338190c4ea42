"""A measurement that was cut goes on at the block it was at, to the same numbers."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import pytest
import torch

from mixllm.blocks import ON_DEVICE, Decoder, Room
from mixllm.config import QuantConfig, Rounding
from mixllm.errors import MixllmError
from mixllm.plan import Salience
from mixllm.progress import Silent
from mixllm.salience import kept as module
from mixllm.salience.kept import Kept
from mixllm.salience.measure import measure_salience
from mixllm.salience.scores import Scores
from mixllm.salience.waiting import waiting_bytes
from mixllm.source import open_source
from tests.models import VOCAB, write_tiny
from tests.saliences import random_salience

BLOCKS, SAMPLES, LENGTH = 4, 5, 19


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    path = tmp_path_factory.mktemp("kept")
    write_tiny(path, "llama", num_hidden_layers=BLOCKS)
    return Decoder.open(open_source(str(path)), torch.device("cpu"), torch.float32)


def measured(decoder: Decoder, error: Rounding, kept: Kept | None, room: Room = ON_DEVICE) -> Salience:
    ids = torch.randint(4, VOCAB, (SAMPLES, LENGTH), generator=torch.Generator().manual_seed(3))
    config = QuantConfig(error=error)
    return measure_salience(decoder, ids, config, room=room, batch=2, progress=Silent(), kept=kept)


def same(a: Salience, b: Salience) -> bool:
    pairs = zip(a.modules.items(), b.modules.items(), strict=True)
    return all(
        m == n and x.in_features == y.in_features and all(torch.equal(x.loss[w], y.loss[w]) for w in (4, 8))
        for (m, x), (n, y) in pairs
    )


@pytest.mark.parametrize("error", ["gptq", "rtn"])
@pytest.mark.parametrize("cut", range(BLOCKS))
@pytest.mark.parametrize("boundaries", [4, 9])
def test_goes_on_to_the_same_numbers(
    decoder: Decoder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Rounding,
    cut: int,
    boundaries: int,
) -> None:
    """cut: the backward walk dies in this block, counted from the last; with room for so many boundaries and
    no disk: for all of them, or for those that are needed at least."""
    room = Room(
        boundaries * SAMPLES * LENGTH * decoder.hidden_size * 4 + 3 * waiting_bytes(decoder.weights[0])
    )
    monkeypatch.setattr(module, "SHARE", float("inf"))
    whole = measured(decoder, error, None)
    scored = []

    def dying(scores: Scores, *given: Any) -> Any:
        scored.append(scores)
        if len({id(s) for s in scored}) > cut:
            raise KeyboardInterrupt
        return add(scores, *given)

    add = Scores.add
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Scores, "add", dying)
        measured(decoder, error, Kept(tmp_path / "kept", 0), room)
    found = Kept(tmp_path / "kept", 0).load()
    assert (None if found is None else found[0]) == (BLOCKS - cut if cut else None)
    assert same(measured(decoder, error, Kept(tmp_path / "kept", 0), room), whole)


def test_only_the_last_is_kept_and_a_half_written_one_does_not_count(tmp_path: Path) -> None:
    kept = Kept(tmp_path, 0)
    kept._saved = 0.0
    scores = random_salience({"layers.3.q": (4, 128)})
    kept.save(3, scores, [torch.zeros(2, 3, 4), torch.ones(1, 3, 4)])
    kept.wait()
    assert kept.load() is not None
    scores.save(tmp_path / "scored-00002.safetensors")  # died before the gradient was written
    found = Kept(tmp_path, 0).load()
    assert found is not None and found[0] == 3
    assert found[2].shape == (3, 3, 4) and found[2].sum() == 12
    kept._saved, kept._cost = 0.0, 0.0
    kept.save(2, scores, [torch.zeros(3, 3, 4)])
    kept.wait()
    names = sorted(file.name for file in tmp_path.iterdir())
    assert names == ["gradient-00002.json", "gradient-00002.raw", "scored-00002.safetensors"]


def test_keeping_takes_a_small_share_of_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    kept, scores = Kept(tmp_path, 0), random_salience({"layers.3.q": (4, 128)})
    kept.save(9, scores, [torch.zeros(1)])
    kept.wait()
    kept._cost = 2.0
    now += 39
    kept.save(8, scores, [torch.zeros(1)])
    kept.wait()
    assert (kept.load() or (0,))[0] == 9
    now += 2
    kept.save(7, scores, [torch.zeros(1)])
    kept.wait()
    assert (kept.load() or (0,))[0] == 7


def test_a_disk_that_is_full_is_told_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise MixllmError("no space left")

    monkeypatch.setattr(module, "write_atomically", full)
    monkeypatch.setattr(module, "SHARE", float("inf"))
    with pytest.raises(MixllmError, match="no space left"), Kept(tmp_path, 0) as kept:
        kept.save(3, random_salience({"layers.3.q": (4, 128)}), [torch.zeros(1)])


def test_the_first_one_waits_until_it_pays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    kept, scores = Kept(tmp_path, 2 * 10**9), random_salience({"layers.3.q": (4, 128)})
    now += 39
    kept.save(8, scores, [torch.zeros(1)])
    kept.wait()
    assert kept.load() is None
    now += 2
    kept.save(7, scores, [torch.zeros(1)])
    kept.wait()
    assert (kept.load() or (0,))[0] == 7


def test_a_file_that_may_not_grow_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    kept = Kept(tmp_path, 0)
    kept._saved = 0.0
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, before[1]))
    try:
        kept.save(3, random_salience({"layers.3.q": (4, 128)}), [torch.zeros(50, 2), torch.zeros(50, 2)])
        with pytest.raises(MixllmError, match=r"gradient-00003\.raw: larger than a file may be here"):
            kept.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == [] and kept.load() is None


def test_keeps_what_a_gpu_computes_in(tmp_path: Path) -> None:
    kept, scores = Kept(tmp_path, 0), random_salience({"layers.3.q": (4, 128)})
    kept._saved = 0.0
    parts = [torch.randn(2, 3, 4).bfloat16(), torch.randn(1, 3, 4).bfloat16()]
    kept.save(3, scores, parts)
    kept.wait()
    found = kept.load()
    assert found is not None and found[2].dtype == torch.bfloat16
    assert torch.equal(found[2], torch.cat(parts))
