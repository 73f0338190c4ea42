"""How a graph of torch.compile, or a CUDA graph, finds a Python object that it cannot hold: by a number.

The number is a tensor, an input and not a constant, so that the graphs of all layers of a model are one and
compiled once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")

_LIBRARY = torch.library.Library("mixllm", "FRAGMENT")


class Numbered(Generic[T]):
    """Objects by number, for as long as the process lives."""

    def __init__(self) -> None:
        self._kept: list[T] = []

    def keep(self, thing: T) -> Tensor:
        """Its number, int64 [], on the CPU, where reading it is free."""
        self._kept.append(thing)
        return torch.tensor(len(self._kept) - 1, device="cpu")

    def __getitem__(self, number: Tensor) -> T:
        return self._kept[int(number)]


def define(schema: str, run: Callable[..., Tensor], like: Callable[..., Tensor]) -> None:
    """Make an operator of this schema, "name(Tensor x, ..) -> Tensor", in torch.ops.mixllm, for CPU and CUDA.

    like: an empty tensor as `run` would return.
    """
    name = schema.partition("(")[0]
    _LIBRARY.define(schema)
    for key in ("CPU", "CUDA"):
        _LIBRARY.impl(name, run, key)
    torch.library.register_fake(f"mixllm::{name}", like, lib=_LIBRARY)
