"""One opaque operator for torch.compile: a layer's experts applied to the tokens routed to them.

As in mixllm.integrations.served.op, the graph holds a number by which the kernels are found.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from mixllm.kernels import LinearKernel


class ExpertKernels(Protocol):
    """All experts of a layer, in the layout that a backend runs."""

    def __call__(self, x: Tensor, weights: Tensor, ids: Tensor) -> Tensor:
        """x [T, H], each token's experts int64 [T, top k] and their weights [T, top k] -> [T, H]."""
        ...


@dataclass(frozen=True)
class OneByOne:
    """Each expert's kernels (gate and up joined, down), and the gating [T, 2 I] -> [T, I] between them."""

    experts: list[tuple[LinearKernel, LinearKernel]]
    gate: Callable[[Tensor], Tensor]

    def __call__(self, x: Tensor, weights: Tensor, ids: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        for number in ids.unique().tolist():
            token, place = (ids == number).nonzero(as_tuple=True)
            gate_up, down = self.experts[number]
            y = down(self.gate(gate_up(x[token]))) * weights[token, place, None]
            out.index_add_(0, token, y.to(out.dtype))
        return out


_LAYERS: list[ExpertKernels] = []

_LIBRARY = torch.library.Library("mixllm", "FRAGMENT")
_LIBRARY.define("served_experts(Tensor x, Tensor weights, Tensor ids, Tensor layer) -> Tensor")


def keep_experts(kernels: ExpertKernels) -> Tensor:
    """The number by which served_experts finds the kernels: int64 [], on the CPU, where reading is free."""
    _LAYERS.append(kernels)
    return torch.tensor(len(_LAYERS) - 1, device="cpu")


def _served_experts(x: Tensor, weights: Tensor, ids: Tensor, layer: Tensor) -> Tensor:
    return _LAYERS[int(layer)](x, weights, ids)


def _like(x: Tensor, weights: Tensor, ids: Tensor, layer: Tensor) -> Tensor:
    return torch.empty_like(x)


_LIBRARY.impl("served_experts", _served_experts, "CPU")
_LIBRARY.impl("served_experts", _served_experts, "CUDA")
torch.library.register_fake("mixllm::served_experts", _like, lib=_LIBRARY)
