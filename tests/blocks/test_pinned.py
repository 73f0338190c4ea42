"""The host's buffers: memory of their own, used again."""

from __future__ import annotations

from mixllm.blocks.pinned import Pinned


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
