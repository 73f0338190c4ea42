"""Candidates that wait come back as they were, and take what is told."""

from __future__ import annotations

import pytest
import torch

from mixllm.blocks import ON_DEVICE, States
from mixllm.config import PROFILES, QuantConfig
from mixllm.salience.candidates import candidates
from mixllm.salience.waiting import FIRST, Waiting, waiting_bytes
from tests import shapes


@pytest.mark.parametrize("profile", sorted(PROFILES))
def test_they_come_back_as_they_were(profile: str) -> None:
    config = QuantConfig(format=PROFILES[profile])
    weights = {name: shapes.weight(n, k, n) for name, (n, k) in {"a": (3, 257), "b": (70, 384)}.items()}
    found = candidates(weights, config, None)
    with States(torch.device("cpu"), ON_DEVICE) as states:
        waiting = Waiting(states, config.format, 1001)
        waiting.put(5, found)
        waiting.put(0, {"c": found["a"]})
        assert 5 in waiting and 0 in waiting and 4 not in waiting
        parts = [part.nbytes for part in states.read(FIRST - 5)]
        assert len(parts) > 1 and set(parts[:-1]) == {1001}
        assert sum(parts) <= waiting_bytes(sum(weight.numel() for weight in weights.values()))
        back = waiting.take(5)
        assert 5 not in waiting and list(waiting.take(0)) == ["c"]
    assert back.keys() == found.keys()
    for name, rounded in found.items():
        for field, tensor in vars(rounded).items():
            other = getattr(back[name], field)
            assert (other is None) == (tensor is None), field
            if tensor is not None:
                assert other.dtype == tensor.dtype and torch.equal(other, tensor), (name, field)
