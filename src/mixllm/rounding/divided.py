"""The layers of a block, divided over processes: who makes what, and how all get it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from mixllm.ranks import Ranks
from mixllm.rounding.hessian import Shared

Key = TypeVar("Key")


def divided(
    found: list[Shared],
    linears: Mapping[str, nn.Linear],
    ranks: Ranks,
    make: Callable[[Shared], tuple[dict[Key, Tensor], Any]],
) -> tuple[dict[Key, Tensor], list[Any]]:
    """make(group) of every group of layers with one input, each by one process, and given to all.

    found: what collect found here, of this process's samples, emptied; make gets the sum over all processes,
    and returns tensors and a small note. Returns all tensors together, and the notes.
    """
    own = {tuple(group.names): group.hessian for group in found}
    groups = ranks.union(list(own))
    seen = {tuple(group.names): group.tokens for group in found}
    tokens = torch.tensor(
        [seen.get(names, 0) for names in groups], device=next(iter(linears.values())).weight.device
    )
    ranks.add(tokens)
    counts = dict(zip(groups, tokens.tolist(), strict=True))
    found.clear()
    sizes = [[(linears[name].out_features, linears[name].in_features) for name in names] for names in groups]
    # Cholesky and inverse, then GPTQ row by row.
    owners = ranks.owners([sum(n * k**2 for n, k in size) + 2 * size[0][1] ** 3 for size in sizes])
    hessians: dict[tuple[str, ...], Tensor] = {}
    for names, owner in zip(groups, owners, strict=True):
        hessian = own.pop(names) if names in own else _zeros(linears[names[0]])
        ranks.add_at(owner, hessian)
        if owner == ranks.rank:
            hessians[names] = hessian
    # The last ones first: a model's widest inputs are its last, and leave room for the others' results.
    made = {
        names: make(Shared(list(names), hessians.pop(names), counts[names]))
        for names in reversed(list(hessians))
    }
    tensors: dict[Key, Tensor] = {}
    notes = []
    for names, owner in zip(groups, owners, strict=True):
        given, note = ranks.give(owner, *made.pop(names, ({}, None)))
        tensors.update(given)
        notes.append(note)
    return tensors, notes


def _zeros(linear: nn.Linear) -> Tensor:
    """The Hessian of a layer that this process's samples did not reach: an expert of others' tokens."""
    k = linear.in_features
    return torch.zeros(k, k, device=linear.weight.device)
