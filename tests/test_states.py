"""States between blocks, wherever they are kept, and weights that are read ahead."""

from __future__ import annotations

import threading
import weakref
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mixllm.blocks import Decoder, Room, States
from mixllm.blocks.ahead import ReadAhead
from mixllm.blocks.pinned import Pinned
from mixllm.errors import MixllmError
from mixllm.source import open_source
from tests.models import write_tiny

CPU = torch.device("cpu")


def tensors(count: int, seed: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 3 + i % 2, 5, generator=generator).to(dtype) for i in range(count)]


@settings(max_examples=20)
@given(fit=st.integers(0, 9), count=st.integers(0, 5), dtype=st.sampled_from([torch.float32, torch.bfloat16]))
def test_come_back_as_they_were(
    tmp_path_factory: pytest.TempPathFactory, fit: int, count: int, dtype: torch.dtype
) -> None:
    disk = tmp_path_factory.mktemp("states")
    first, second = tensors(count, 1, dtype), tensors(count, 2, dtype)
    with States(CPU, Room(fit * 30 * dtype.itemsize, 0, disk)) as states:
        states.put(3, first, soon=True)
        states.put(-1, second, soon=False)
        for _ in range(2):
            assert all(torch.equal(a, b) for a, b in zip(states.read(3), first, strict=True))
        # What is taken may be put again under its number while it is taken.
        states.put(3, (2 * t for t in states.take(3)), soon=True)
        assert all(torch.equal(a, 2 * b) for a, b in zip(states.take(3), first, strict=True))
        assert all(torch.equal(a, b) for a, b in zip(states.read(-1), second, strict=True))
    assert list(disk.iterdir()) == []


def test_what_was_taken_is_let_go() -> None:
    # As cuda is the cuda:0 of its tensors, but is not equal to it.
    with States(torch.device("cpu:0"), Room(1000)) as states:
        states.put(0, tensors(3, 0), soon=True)
        taken = [weakref.ref(t) for t in states.take(0)]
        assert [t() for t in taken[:-1]] == [None, None]


def test_room_is_used_before_the_disk(tmp_path: Path) -> None:
    with States(CPU, Room(2 * 30 * 4, 0, tmp_path)) as states:
        states.put(0, tensors(3, 0), soon=True)
        assert len(list(tmp_path.iterdir())) == 1
        list(states.take(0))
        assert list(tmp_path.iterdir()) == []
        states.put(1, tensors(1, 0), soon=True)
        assert list(tmp_path.iterdir()) == []


def test_a_disk_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with (
        States(CPU, Room(0, 0, tmp_path / "gone")) as states,
        pytest.raises(MixllmError, match=r"gone/1\.states: states between blocks cannot be written"),
    ):
        states.put(0, tensors(1, 0), soon=True)


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


def test_what_is_wanted_soon_has_the_devices_room_for_itself(tmp_path: Path) -> None:
    size = 30 * 4
    with States(CPU, Room(3 * size, 0, tmp_path, soon=size)) as states:
        states.put(0, tensors(1, 0) * 2, soon=False)
        states.put(1, tensors(1, 1), soon=True)
        assert [part.where for i in (0, 1) for part in states._kept[i]] == ["device"] * 3
        list(states.take(1))
        # Where nothing else is left, the room is for all.
        states.put(2, tensors(1, 2), soon=False)
        assert [part.where for part in states._kept[2]] == ["device"]
        states.put(3, tensors(1, 3), soon=True)
        assert [part.where for part in states._kept[3]] == ["disk"]


def test_the_hosts_buffers_are_memory_of_their_own_and_used_again() -> None:
    pinned: list[int] = []
    buffers = Pinned(25_000, lambda b: pinned.append(b.data_ptr()), lambda b: pinned.remove(b.data_ptr()))
    one, other = buffers.take(10_001), buffers.take(12_001)
    one.fill_(3)
    assert one.nbytes == 10_001 and other.sum() == 0 and one.data_ptr() % 64 == 0
    assert pinned == [one.data_ptr(), other.data_ptr()]
    buffers.give_back(other.view(12_001, 1))
    buffers.give_back(one)
    # The least that holds it, however small it is.
    again = buffers.take(7)
    assert again.nbytes == 7 and again.data_ptr() == one.data_ptr() and int(again[0]) == 3
    # A spare one that is too small makes room.
    large = buffers.take(13_000)
    assert buffers.bytes == 23_001 and pinned == [one.data_ptr(), large.data_ptr()]
    buffers.close()
    assert pinned == [] and buffers.bytes == 0
