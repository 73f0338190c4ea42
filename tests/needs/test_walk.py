"""What walks take was told: what it depends on."""

from __future__ import annotations

import pytest

from mixllm.blocks.room import stretches
from mixllm.errors import MixllmError
from tests.needs.machine import GB, llama, on_gpu


def test_an_8b_model_stays_within_its_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = llama(4096, 14336, 32)
    found = on_gpu(monkeypatch, sizes)
    assert found.batch == 16384
    assert found.device <= 22 * GB and found.host <= 16 * GB
    boundary = 128 * 2048 * 4096 * 2
    states = (1 + len(stretches(32, found.room.boundaries(boundary)))) * boundary
    assert states <= found.room.device + found.room.host and found.temporary == 0
    assert found.host == pytest.approx(11.63 * GB, rel=0.02)  # as an H200's run took
    assert found.again == 32 and on_gpu(monkeypatch, llama(2048, 8192, 2)).again == 0


def test_states_that_a_gpu_holds_pin_no_memory_of_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    few = on_gpu(monkeypatch, llama(4096, 14336, 8))
    half = on_gpu(monkeypatch, llama(4096, 14336, 32), samples=64)  # as each of two processes has it
    for found in (few, half):
        assert found.room.host == 0 and found.device <= 22 * GB and found.host < 2 * GB
    # Otherwise the host has what the GPU cannot hold, and little more.
    many = on_gpu(monkeypatch, llama(4096, 14336, 32))
    boundary = 128 * 2048 * 4096 * 2
    assert many.device == 22 * GB and many.room.soon == boundary
    assert 0 < many.room.host < (1 + len(stretches(32, 0))) * boundary - many.room.device + 4 * GB


def test_memory_hardly_grows_with_depth(monkeypatch: pytest.MonkeyPatch) -> None:
    few, many = (on_gpu(monkeypatch, llama(8192, 28672, blocks)) for blocks in (8, 80))
    assert many.device == few.device
    # Ten times the blocks: under four times the boundaries.
    assert many.host + many.temporary < 4 * (few.host + few.temporary)


def test_files_are_for_what_half_of_the_host_cannot_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = llama(8192, 28672, 80)
    plenty, some, little = (on_gpu(monkeypatch, sizes, host=host) for host in (240, 60, 20))
    assert plenty.temporary == 0 and 14 * GB < plenty.host < 120 * GB
    assert some.temporary > 0 and 29 * GB < some.host <= 31 * GB
    assert little.temporary > some.temporary and 13 * GB < little.host <= 14 * GB


def test_a_small_gpu_takes_fewer_tokens_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = llama(4096, 14336, 32)
    assert on_gpu(monkeypatch, sizes, gpu=10).batch < 16384
    assert on_gpu(monkeypatch, sizes, gpu=10).device <= 10 * GB
    with pytest.raises(MixllmError, match=r"one block and one window of 2048 tokens take \d\.\d GB"):
        on_gpu(monkeypatch, sizes, gpu=5)


def test_a_large_block_may_take_more_than_states_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    found = on_gpu(monkeypatch, llama(16384, 53248, 126))
    assert 22 * GB < found.device < 80 * GB and found.room.device == 0
