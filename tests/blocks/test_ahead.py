"""Weights that are read ahead."""

from __future__ import annotations

import threading
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mixllm.blocks import Decoder
from mixllm.blocks.ahead import ReadAhead
from mixllm.errors import MixllmError
from mixllm.source import open_source
from tests.models import write_tiny

CPU = torch.device("cpu")


def test_the_next_is_read_while_this_one_works() -> None:
    asked: list[tuple[int, str]] = []
    done = threading.Event()

    def read(i: int) -> dict[str, Tensor]:
        asked.append((i, threading.current_thread().name))
        done.set()
        return {"weight": torch.full((1,), float(i))}

    ahead = ReadAhead(read, CPU)
    assert float(ahead.take(0)["weight"]) == 0
    done.clear()
    ahead.start(1)
    assert done.wait(10)
    assert float(ahead.take(1)["weight"]) == 1
    done.clear()
    ahead.start(2)
    assert done.wait(10)
    assert float(ahead.take(7)["weight"]) == 7
    assert sorted(i for i, _ in asked) == [0, 1, 2, 7]
    # What was begun before is read beside the work, what was not where it is asked for.
    assert [i for i, name in sorted(asked) if name.startswith("mixllm-read")] == [1, 2]


@pytest.mark.parametrize("fails", [False, True])
def test_settling_waits_for_what_is_being_read(fails: bool) -> None:
    may, read_to_end = threading.Event(), threading.Event()

    def read(i: int) -> dict[str, Tensor]:
        assert may.wait(10)
        read_to_end.set()
        if fails:
            raise MixllmError("missing")
        return {}

    ahead = ReadAhead(read, CPU)
    ahead.settle()  # nothing was begun
    ahead.start(3)
    threading.Timer(0.05, may.set).start()
    ahead.settle()
    assert read_to_end.is_set()
    with pytest.raises(MixllmError) if fails else nullcontext():
        assert ahead.take(3) == {}


def test_no_weight_goes_while_the_next_ones_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is read would take a dropped block's memory, which queued work still reads."""
    write_tiny(tmp_path, "llama")
    decoder = Decoder.open(open_source(str(tmp_path)), CPU, torch.float32)
    settled: list[int] = []

    def settle(_: ReadAhead) -> None:
        there = [
            i for i in range(len(decoder)) if not any(w.weight.is_meta for w in decoder.linears(i).values())
        ]
        settled.extend(there)

    monkeypatch.setattr(ReadAhead, "settle", settle)
    for _ in decoder.walk([0, 2, 1]):
        pass
    assert settled == [0, 2, 1]


def test_a_walk_on_a_cpu_has_one_thread(tmp_path: Path) -> None:
    """A second one that computes would slow the first one's operations."""
    write_tiny(tmp_path, "llama")
    before = set(threading.enumerate())
    decoder = Decoder.open(open_source(str(tmp_path)), CPU, torch.float32)
    assert len(decoder) > 1
    for _ in decoder.walk(range(len(decoder))):
        assert set(threading.enumerate()) <= before


def test_an_error_in_reading_is_raised_where_the_block_is_taken() -> None:
    def read(i: int) -> dict[str, Tensor]:
        raise MixllmError(f"block {i}: missing")

    ahead = ReadAhead(read, CPU)
    ahead.start(4)
    with pytest.raises(MixllmError, match="block 4: missing"):
        ahead.take(4)
