"""Functions that are captured and replayed, on a tape in place of a GPU."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mixllm.tuning.graphs import PLAIN, WAIT, Graphs
from tests.tuning.graph_tape import use_tapes

CUDA = torch.device("cuda")


class Pair:
    """Two functions that hand each other a tensor and change one that stays."""

    def __init__(self) -> None:
        self.sum, self.kept, self.calls = torch.zeros(3), torch.zeros(0), 0

    def first(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.kept = x * 2
        return self.kept.cumsum(0)

    def second(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.sum += x * self.kept
        return self.sum.clone()

    def picks(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x[x > 0].sum() * x


@given(steps=st.integers(1, 6), factors=st.lists(st.floats(-3, 3, width=32), min_size=6, max_size=6))
def test_replayed_functions_are_the_functions(steps: int, factors: list[float]) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        tapes = use_tapes(monkeypatch)
        graphs, replayed, plain = Graphs(CUDA), Pair(), Pair()
        for factor in factors[:steps]:
            x = factor * torch.tensor([1.0, -2.0, 0.5])
            for name in ("first", "second"):
                found = graphs(getattr(replayed, name), x)
                assert torch.equal(found, getattr(plain, name)(x))
        assert torch.equal(replayed.sum, plain.sum)
        # Captured once each, and then Python is not run any more.
        assert replayed.calls == 2 * min(steps, PLAIN + 1)
        assert [tape.replays for tape in tapes] == [steps - PLAIN] * 2 * (steps > PLAIN)


def test_none_is_captured_where_the_host_would_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    tapes = use_tapes(monkeypatch)
    graphs, pair = Graphs(CUDA), Pair()
    for step in range(5):
        x = torch.randn(7, generator=torch.Generator().manual_seed(step))
        assert torch.equal(graphs(pair.picks, x), pair.picks(x))
        graphs(pair.first, x)
    assert not tapes and pair.calls == 15


def test_other_warnings_are_no_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    tapes = use_tapes(monkeypatch)

    def noisy(x: Tensor) -> Tensor:
        import warnings

        warnings.warn(WAIT.replace("synchronizing", "slow"), stacklevel=1)
        return x + 1

    graphs = Graphs(CUDA)
    with pytest.warns(UserWarning, match="slow"):
        for _ in range(PLAIN + 1):
            graphs(noisy, torch.ones(2))
    assert len(tapes) == 1


def test_on_a_cpu_functions_are_called() -> None:
    graphs, pair = Graphs(torch.device("cpu")), Pair()
    for _ in range(5):
        graphs(pair.first, torch.ones(3))
    assert pair.calls == 5


def test_what_was_captured_goes_with_its_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    """At once, not when circles are looked for: it is most of a GPU's memory."""
    use_tapes(monkeypatch)
    pair = Pair()
    pair.graphs = Graphs(CUDA)  # type: ignore[attr-defined]
    for _ in range(PLAIN + 1):
        pair.graphs(pair.first, torch.ones(3))  # type: ignore[attr-defined]
    gone = weakref.ref(pair)
    gc.disable()
    try:
        del pair
        assert gone() is None
    finally:
        gc.enable()
