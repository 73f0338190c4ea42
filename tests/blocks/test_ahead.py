"""Weights that are read ahead."""

from __future__ import annotations

import threading
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
