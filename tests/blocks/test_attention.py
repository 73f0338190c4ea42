"""Heads with keys and values of their own attend as grouped ones do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from mixllm.blocks import Decoder
from mixllm.blocks.attention import HeadsApart, quick_attention
from mixllm.source import open_source
from tests.models import VOCAB, write_tiny

CPU = torch.device("cpu")


@pytest.mark.parametrize(("heads", "groups"), [(6, 2), (9, 3), (5, 1), (3, 3)])
@pytest.mark.parametrize("causal", [False, True])
def test_states_and_gradients_are_those_of_grouped_queries(heads: int, groups: int, causal: bool) -> None:
    torch.manual_seed(0)
    shapes = ((2, heads, 7, 12), (2, groups, 7, 12), (2, groups, 7, 12))
    given = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    wanted = F.scaled_dot_product_attention(*given, is_causal=causal, enable_gqa=True, scale=0.3)
    with HeadsApart():
        found = F.scaled_dot_product_attention(*given, is_causal=causal, enable_gqa=True, scale=0.3)
    torch.testing.assert_close(found, wanted)
    gradient = torch.randn_like(wanted)
    pairs = (torch.autograd.grad(y, given, gradient) for y in (found, wanted))
    for ours, theirs in zip(*pairs, strict=True):
        torch.testing.assert_close(ours, theirs)


class Watched(TorchFunctionMode):
    """Whether attention was asked to share keys and values between heads."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[bool] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            self.asked.append((kwargs or {}).get("enable_gqa", False))
        return func(*args, **kwargs or {})


def run(path: Path) -> tuple[torch.Tensor, list[bool]]:
    """What leaves the last block for some tokens, and what attention was asked for, block by block."""
    ids = torch.randint(4, VOCAB, (2, 21), generator=torch.Generator().manual_seed(0))
    decoder = Decoder.open(open_source(str(path)), CPU, torch.float32)
    hidden = decoder.embed(ids)
    with Watched() as watched:
        for _, block in decoder.walk(range(len(decoder))):
            hidden = block(hidden)
    return hidden, watched.asked


@pytest.mark.parametrize(
    ("kind", "grouped"),
    [("llama", [True] * 3), ("qwen3", [True] * 2), ("gemma3_text", [False, True, False])],
)
def test_blocks_compute_the_same(
    kind: str, grouped: list[bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tiny(tmp_path, kind)
    wanted, before = run(tmp_path)
    monkeypatch.setattr("mixllm.blocks.decoder.quick_attention", lambda *_: HeadsApart())
    found, after = run(tmp_path)
    torch.testing.assert_close(found, wanted)
    assert before == grouped
    assert after == [False] * len(grouped)


def test_only_float32_on_a_gpu_needs_it() -> None:
    cuda = torch.device("cuda")
    assert isinstance(quick_attention(cuda, torch.float32), HeadsApart)
    for device, dtype in ((cuda, torch.bfloat16), (cuda, torch.float16), (CPU, torch.float32)):
        assert not isinstance(quick_attention(device, dtype), HeadsApart)
