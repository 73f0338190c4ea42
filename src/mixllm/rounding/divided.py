"""The layers of a block, divided over processes: who makes what, and how all get it.

Layers with one input share a Hessian and its factor, and rows of a layer are independent given that factor.
So a group of such layers is made whole by one process or, where it is too much work for that, factored
by one and its rows divided over all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from mixllm.ranks import Ranks
from mixllm.rounding.hessian import Factor, Shared

Key = TypeVar("Key")
# The names of a group; its factor; the rows of each of its layers that are to be made.
Make = Callable[[list[str], Factor | None, dict[str, slice]], tuple[dict[Key, Tensor], Any]]
# What factoring a Hessian [K, K] costs in weights times K: seconds for 8B's shape on an H100.
FACTOR = 0.3


def divided(
    found: list[Shared],
    linears: Mapping[str, nn.Linear],
    ranks: Ranks,
    factor: Callable[[Shared], Factor | None],
    make: Make[Key],
    *,
    dim: int,
) -> tuple[dict[Key, Tensor], list[Any]]:
    """make(...) of every group of layers with one input, by one process or divided, and given to all.

    found: what collect found here, of this process's samples, emptied; factor gets the sum over all of them.
    make returns tensors whose dimension `dim` are the rows it was asked for, and a small note.
    Returns all tensors, whole, and all notes, one or several a group, in any order.
    """
    own = {tuple(group.names): group.hessian for group in found}
    tokens: dict[tuple[str, ...], int] = {}
    for seen in ranks.every([(tuple(group.names), group.tokens) for group in found]):
        for names, count in seen:
            tokens[names] = tokens.get(names, 0) + count
    found.clear()
    groups = list(tokens)
    cut, owners = _shares(groups, linears, ranks)
    hessians: dict[tuple[str, ...], Shared] = {}
    for names, owner in zip(groups, owners, strict=True):
        hessian = own.pop(names) if names in own else _zeros(linears[names[0]])
        ranks.add_at(owner, hessian)
        if owner == ranks.rank:
            hessians[names] = Shared(list(names), hessian, tokens[names])
        del hessian
    factors: dict[tuple[str, ...], Factor | None] = {}
    mine: dict[Key, Tensor] = {}
    notes: list[Any] = []

    def add(made: tuple[dict[Key, Tensor], Any]) -> None:
        mine.update(made[0])
        notes.append(made[1])

    # The last ones first: a model's widest inputs are its last, and leave room for the others' results.
    for names in reversed(list(hessians)):
        factors[names] = factor(hessians.pop(names))
        if names not in cut:
            every = {name: slice(0, linears[name].out_features) for name in names}
            add(make(list(names), factors.pop(names), every))
    for names, owner in reversed(list(zip(groups, owners, strict=True))):
        if names in cut:
            given = _give(factors.pop(names, None), owner, ranks)
            add(make(list(names), given, {name: _rows(linears[name], ranks) for name in names}))
            del given
    parts: dict[Key, list[Tensor]] = {}
    told = []
    for tensors, theirs in ranks.exchange(mine, notes):
        told.extend(theirs)
        for key, tensor in tensors.items():
            parts.setdefault(key, []).append(tensor)
    return {key: _joined(pieces, dim) for key, pieces in parts.items()}, told


def _shares(
    groups: list[tuple[str, ...]], linears: Mapping[str, nn.Linear], ranks: Ranks
) -> tuple[set[tuple[str, ...]], list[int]]:
    """Which groups' rows are divided over all processes, and who makes each of the others, or factors it."""
    layers = [[linears[name] for name in names] for names in groups]
    rounding = [sum(layer.out_features * layer.in_features**2 for layer in some) for some in layers]
    factoring = [FACTOR * some[0].in_features ** 3 for some in layers]
    # More than half of a process's part of the whole: it would be waited for.
    most = (sum(rounding) + sum(factoring)) / (2 * ranks.size)
    cut = {
        names
        for names, some, a, b in zip(groups, layers, rounding, factoring, strict=True)
        if ranks.size > 1 and a + b > most and min(layer.out_features for layer in some) >= ranks.size
    }
    costs = [b if names in cut else a + b for names, a, b in zip(groups, rounding, factoring, strict=True)]
    return cut, ranks.owners(costs)


def _rows(linear: nn.Linear, ranks: Ranks) -> slice:
    """This process's part of a layer's rows."""
    n = linear.out_features
    return slice(n * ranks.rank // ranks.size, n * (ranks.rank + 1) // ranks.size)


def _give(factor: Factor | None, owner: int, ranks: Ranks) -> Factor | None:
    """The owner's factor, at every process."""
    tensors: dict[str, Tensor] = {}
    if factor is not None:
        tensors = {"order": torch.cat(factor.groups)}
        tensors |= {name: getattr(factor, name) for name in ("diagonal", "upper", "hessian")}
    note = factor and (factor.numbers, [len(group) for group in factor.groups], factor.added)
    given, note = ranks.give(owner, tensors, note)
    if note is None:
        return None
    numbers, lengths, added = note
    return Factor(numbers, list(given.pop("order").split(lengths)), added=added, **given)


def _joined(parts: list[Tensor], dim: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=dim)


def _zeros(linear: nn.Linear) -> Tensor:
    """The Hessian of a layer that this process's samples did not reach: an expert of others' tokens."""
    k = linear.in_features
    return torch.zeros(k, k, device=linear.weight.device)
