"""The head's short way."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mixllm.decoding import head as head_module
from mixllm.decoding.head import MOST_TOKENS, ShortHead


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    seen: list[int] = []
    own = head_module.dense
    monkeypatch.setattr(head_module, "dense", lambda x, w: (seen.append(len(x)), own(x, w))[1])
    return seen


def layer(dtype: torch.dtype) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(77, 131, bias=False).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(77,), (1, 1, 77), (3, 77), (2, 4, 77)])
@torch.no_grad()
def test_a_few_tokens(dtype: torch.dtype, shape: tuple[int, ...], calls: list[int]) -> None:
    linear, x = layer(dtype), torch.randn(shape).to(dtype)
    y = ShortHead(linear).forward(x)
    torch.testing.assert_close(y, linear(x))
    assert len(calls) == 1


@torch.no_grad()
def test_the_rest_is_torchs(calls: list[int]) -> None:
    linear = layer(torch.float32)
    x = torch.randn(MOST_TOKENS + 1, 77)
    assert torch.equal(ShortHead(linear).forward(x), linear(x))
    assert torch.equal(ShortHead(linear).forward(x[:0]), linear(x[:0]))
    with torch.enable_grad():
        assert ShortHead(linear).forward(x[:1]).requires_grad
    with torch.autocast("cpu", torch.bfloat16):
        assert ShortHead(linear).forward(x[:1]).dtype == torch.bfloat16
    double = layer(torch.float64)
    assert torch.equal(ShortHead(double).forward(x[:1].double()), double(x[:1].double()))
    with pytest.raises(RuntimeError):
        ShortHead(linear).forward(x[:1, :76])
    assert not calls
