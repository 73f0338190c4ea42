"""Norms that one kernel computes as the model's own code does, and those that are left alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from mixllm.blocks.norms import fuse_norms
from tests.models import write_tiny

CPU = torch.device("cpu")


class OtherRMSNorm(nn.Module):
    """Named like one; without an epsilon of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(12))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("kind", "each"), [("llama", 2), ("qwen3", 4), ("olmo2", 4), ("gemma3_text", 0), ("gpt_neox", 0)]
)
def test_usual_norms_give_what_they_gave(kind: str, each: int, dtype: torch.dtype, tmp_path: Path) -> None:
    model = write_tiny(tmp_path, kind).to(dtype)
    blocks = next(m for m in model.modules() if isinstance(m, nn.ModuleList))
    torch.manual_seed(0)
    for parameter in blocks.parameters():
        if parameter.dim() == 1:
            nn.init.normal_(parameter)
    ids = torch.randint(4, 60, (2, 11))
    before = model(ids).logits
    assert fuse_norms(blocks, CPU, dtype) == each * len(blocks)
    off = (model(ids).logits - before).double().norm() / before.double().norm()
    assert float(off) < 8 * torch.finfo(dtype).eps


def test_what_is_only_named_so_is_left() -> None:
    assert fuse_norms([nn.Sequential(OtherRMSNorm())], CPU, torch.float32) == 0


def test_one_without_memory_gets_its_weight_later() -> None:
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    with torch.device("meta"):
        norm = LlamaRMSNorm(72)
    assert fuse_norms([norm], CPU, torch.float32) == 1
    norm.weight = nn.Parameter(torch.full((72,), 3.0), requires_grad=False)
    x = torch.randn(5, 72, requires_grad=True)
    expected = 3 * x / (x.square().mean(1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(norm(x), expected)
    both = [torch.autograd.grad(y.square().sum() + y[:, 3].sum(), x)[0] for y in (norm(x), expected)]
    torch.testing.assert_close(*both, rtol=1e-4, atol=1e-4)
