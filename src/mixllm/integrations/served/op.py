"""One opaque operator for torch.compile and CUDA graphs: a prepared kernel applied to x.

A kernel is a Python object, which no graph can hold. Its number can, as a tensor: an input, and not a
constant, so that the graphs of all layers of a model are one and compiled once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mixllm.kernels import LinearKernel

_KERNELS: list[LinearKernel] = []

_LIBRARY = torch.library.Library("mixllm", "FRAGMENT")
_LIBRARY.define("served_linear(Tensor x, Tensor kernel, Tensor? bias, SymInt channels) -> Tensor")


def keep(kernel: LinearKernel) -> Tensor:
    """The number by which served_linear finds the kernel: int64 [], on the CPU, where reading it is free."""
    _KERNELS.append(kernel)
    return torch.tensor(len(_KERNELS) - 1, device="cpu")


def _served_linear(x: Tensor, kernel: Tensor, bias: Tensor | None, channels: int) -> Tensor:
    """x [..., K] -> [..., channels] in x's dtype."""
    return _KERNELS[int(kernel)](x, bias)


def _like(x: Tensor, kernel: Tensor, bias: Tensor | None, channels: int) -> Tensor:
    return x.new_empty((*x.shape[:-1], channels))


_LIBRARY.impl("served_linear", _served_linear, "CPU")
_LIBRARY.impl("served_linear", _served_linear, "CUDA")
torch.library.register_fake("mixllm::served_linear", _like, lib=_LIBRARY)
