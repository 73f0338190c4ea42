"""States between blocks, wherever they are kept."""

from __future__ import annotations

import weakref
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mixllm.blocks import Room, States
from mixllm.errors import MixllmError

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
