"""One opaque operator for torch.compile: a layer's experts applied to the tokens routed to them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from mixllm.integrations.served.numbered import Numbered, define
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


EXPERTS = Numbered[ExpertKernels]()


def _run(x: Tensor, weights: Tensor, ids: Tensor, layer: Tensor) -> Tensor:
    return EXPERTS[layer](x, weights, ids)


def _like(x: Tensor, weights: Tensor, ids: Tensor, layer: Tensor) -> Tensor:
    return torch.empty_like(x)


define("served_experts(Tensor x, Tensor weights, Tensor ids, Tensor layer) -> Tensor", _run, _like)
