"""Which Hessians are factored, and what a GPU's allocator is told before."""

from __future__ import annotations

import pytest
import torch

from mixllm.config import QuantConfig
from mixllm.rounding import few
from mixllm.rounding.few import factor_if_seen
from mixllm.rounding.hessian import Shared
from tests import shapes

K = 40


def shared(tokens: int) -> Shared:
    x = shapes.inputs(3 * K, K, 5)
    return Shared(["layer"], x.T @ x, tokens)


@pytest.mark.parametrize(("tokens", "total", "enough"), [(K, 900, True), (K - 1, 900, False), (9, 9, True)])
def test_a_hessian_of_fewer_tokens_than_inputs_is_none(tokens: int, total: int, enough: bool) -> None:
    assert (factor_if_seen(shared(tokens), QuantConfig(), total) is not None) == enough


def test_room_is_made_for_a_copy_and_the_factor(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[torch.device, int, int]] = []
    monkeypatch.setattr(few, "trim", lambda *given, coming: asked.append((*given, coming)))
    factor_if_seen(shared(K), QuantConfig(), 900, reserved=100_000)
    factor_if_seen(shared(1), QuantConfig(), 900, reserved=100_000)
    assert asked == [(torch.device("cpu"), 100_000, 2 * 4 * K * K)]
