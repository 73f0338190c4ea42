"""A layer's output errors, and their sums, in float32 and in fixed point."""

from __future__ import annotations

import pytest
import torch

from mixllm import fixed
from mixllm.salience.errors import Errors
from mixllm.salience.sums import over_tokens


@pytest.mark.parametrize("quick", [False, True])
def test_sums_are_those_of_the_errors(quick: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fixed, "quick", lambda: quick)
    torch.manual_seed(0)
    off, x, delta = torch.randn(3, 21, 33) * 1e-3, torch.randn(2, 19, 33), torch.randn(2, 19, 21)
    errors = Errors.made(off)
    expected = over_tokens(delta, torch.einsum("blk,wnk->blwn", x, off).flatten(2))
    for found, exact in zip(errors.over_tokens(delta, x), expected, strict=True):
        assert found.shape == (2, 3, 21)
        assert float((found - exact).norm()) < 1e-3 * float(exact.norm())
