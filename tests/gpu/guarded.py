"""A product under guard, and beside the reference's."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

CANARY = 0x5A
MARGIN = 512


def run_guarded(x: Tensor, channels: int, product: Callable[[Tensor], None]) -> Tensor:
    """What product(y [T, channels]) writes for x [T, K]: y is poisoned and between canaries that must live;
    twice, with the same bits."""
    size = x.shape[0] * channels * x.element_size()
    guarded = torch.full((MARGIN + size + MARGIN,), CANARY, dtype=torch.uint8, device=x.device)
    y = guarded[MARGIN : MARGIN + size].view(x.dtype).view(x.shape[0], channels)
    results = []
    for _ in range(2):
        y.fill_(7777)
        product(y)
        results.append(y.clone())
    assert bool((guarded[:MARGIN] == CANARY).all())
    assert bool((guarded[MARGIN + size :] == CANARY).all())
    assert torch.equal(results[0].nan_to_num(-5), results[1].nan_to_num(-5)), "the same bits every run"
    return results[0]


def assert_as(y: Tensor, expected: Tensor, *, exact: bool, float32_error: float) -> None:
    """NaN in the same places; else equal, or close for sums of floats, which come in another order."""
    assert torch.equal(y.isnan(), expected.isnan())
    if exact:
        assert torch.equal(y.nan_to_num(-5), expected.nan_to_num(-5))
    else:
        error = (y.float() - expected.float()).nan_to_num(0).norm() / expected.float().nan_to_num(0).norm()
        assert error < (float32_error if y.dtype == torch.float32 else 4e-3)
