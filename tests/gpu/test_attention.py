"""Float32 with grouped queries takes torch's memory-efficient attention on a GPU."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from mixllm.blocks.attention import quick_attention

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("size", [64, 72])
@pytest.mark.parametrize("length", [1, 77, 256])
def test_the_kernel_takes_it_there_and_back(length: int, size: int) -> None:
    torch.manual_seed(0)
    shapes = ((2, 9, length, size), (2, 3, length, size), (2, 3, length, size))
    given = [torch.randn(shape, requires_grad=True) for shape in shapes]
    on_gpu = [part.detach().cuda().requires_grad_() for part in given]
    wanted = F.scaled_dot_product_attention(*given, is_causal=True, enable_gqa=True)
    # No other kernel may be taken: where this one can't be, torch raises.
    with sdpa_kernel(SDPBackend.EFFICIENT_ATTENTION), quick_attention(torch.device("cuda"), torch.float32):
        found = F.scaled_dot_product_attention(*on_gpu, is_causal=True, enable_gqa=True)
    torch.testing.assert_close(found.cpu(), wanted, rtol=1e-3, atol=1e-3)
    gradient = torch.randn_like(wanted)
    ours = torch.autograd.grad(found, on_gpu, gradient.cuda())
    for mine, theirs in zip(ours, torch.autograd.grad(wanted, given, gradient), strict=True):
        torch.testing.assert_close(mine.cpu(), theirs, rtol=1e-3, atol=1e-3)
