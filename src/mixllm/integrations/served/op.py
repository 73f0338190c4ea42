"""One opaque operator for torch.compile and CUDA graphs: a prepared kernel applied to x."""

from __future__ import annotations

from torch import Tensor

from mixllm.integrations.served.numbered import Numbered, define
from mixllm.kernels import LinearKernel

KERNELS = Numbered[LinearKernel]()


def _run(x: Tensor, kernel: Tensor, bias: Tensor | None, channels: int) -> Tensor:
    """x [..., K] -> [..., channels] in x's dtype."""
    return KERNELS[kernel](x, bias)


def _like(x: Tensor, kernel: Tensor, bias: Tensor | None, channels: int) -> Tensor:
    return x.new_empty((*x.shape[:-1], channels))


define("served_linear(Tensor x, Tensor kernel, Tensor? bias, SymInt channels) -> Tensor", _run, _like)
