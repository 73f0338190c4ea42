"""Grouped-query attention in float32, in a form that torch's quick kernels take.

Asked to share keys and values between heads (enable_gqa), torch before pytorch/pytorch#191085 has a quick
kernel for bfloat16 and float16 alone; float32 goes the plain way, with whole scores [B, heads, L, L], their
softmax and its gradient in memory. With keys and values written out for every head, the memory-efficient
kernel takes it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


def quick_attention(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[Any]:
    """For blocks that run on this device in this dtype; where they need it not, it does nothing."""
    return HeadsApart() if device.type == "cuda" and dtype == torch.float32 else nullcontext()


class HeadsApart(TorchFunctionMode):
    """A context in which each head of torch's attention has its own keys and values; good for many times."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            return _apart(*args, **kwargs or {})
        return func(*args, **kwargs or {})


def _apart(
    query: Tensor, key: Tensor, value: Tensor, *rest: Any, enable_gqa: bool = False, **options: Any
) -> Tensor:
    """torch's attention of query [B, heads, L, D], key [B, groups, S, D] and value [B, groups, S, E]."""
    if enable_gqa:
        key, value = (_repeat(part, query.shape[-3] // part.shape[-3]) for part in (key, value))
    return F.scaled_dot_product_attention(query, key, value, *rest, **options)


def _repeat(x: Tensor, times: int) -> Tensor:
    """x [..., groups, S, D] -> [..., groups * times, S, D], each group `times` in a row."""
    return x.unsqueeze(-3).expand(*x.shape[:-2], times, *x.shape[-2:]).flatten(-4, -3)
