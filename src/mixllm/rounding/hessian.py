"""The Hessian of a linear layer's inputs, H = X'X, and the factor of it that GPTQ walks along."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mixllm.config import GROUP_SIZE
from mixllm.errors import MixllmError
from mixllm.rotation import rotate

DAMPING_STEPS = 4


@dataclass
class Shared:
    """Linear layers that read the same input, and H = X'X of that input: float32 [K, K]."""

    names: list[str]
    hessian: Tensor


@contextmanager
def collect(linears: dict[str, nn.Linear]) -> Iterator[list[Shared]]:
    """Sum H over everything the linears are fed inside the context; layers with one input share one H."""
    found: list[Shared] = []
    owner: dict[str, Shared] = {}
    last: dict[str, Any] = {"input": None, "shared": None}

    def hook(name: str) -> Any:
        def add(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0]
            repeated = x is last["input"]
            shared = owner.get(name)
            if shared is None:
                k = x.shape[-1]
                shared = last["shared"] if repeated else Shared([], x.new_zeros(k, k, dtype=torch.float32))
                shared.names.append(name)
                owner[name] = shared
                if not repeated:
                    found.append(shared)
            if shared.names[0] == name:
                flat = x.detach().reshape(-1, x.shape[-1]).float()
                shared.hessian.addmm_(flat.T, flat)
            last["input"], last["shared"] = x, shared

        return add

    handles = [linear.register_forward_pre_hook(hook(name)) for name, linear in linears.items()]
    try:
        yield found
    finally:
        last.clear()
        for handle in handles:
            handle.remove()


@dataclass(frozen=True)
class Factor:
    """What rounding needs of H, in the order in which columns are rounded.

    groups: the column numbers of each group [L], in the order of processing.
    diagonal: float32 [K], the diagonal of H, in the layer's own column order.
    upper: float32 [K, K], upper Cholesky factor of the damped inverse of H in processing order.
    hessian: float32 [K, K], the damped H itself, in the layer's own column order.
    """

    groups: list[Tensor]
    diagonal: Tensor
    upper: Tensor
    hessian: Tensor


def rotated(hessian: Tensor) -> Tensor:
    """H of the rotated inputs, from H of the plain ones."""
    return rotate(rotate(hessian).T)


def factor(hessian: Tensor, *, order: bool, damping: float, where: str) -> Factor:
    """Factor H [K, K] for GPTQ (arXiv 2210.17323, algorithm 1).

    order: the groups with the largest mean diagonal first, and within a group the columns likewise:
    groups stay whole, so it costs nothing at run time. A dead input (zero diagonal) takes no part in
    the feedback and is simply rounded. Raises MixllmError naming `where` for NaN or infinite inputs.
    """
    diagonal = hessian.diagonal().clone()
    if not bool(torch.isfinite(diagonal).all()):
        raise MixllmError(
            f"{where}: calibration gives NaN or infinite inputs; check the model's weights and dtype"
        )
    groups = list(torch.arange(len(diagonal), device=diagonal.device).split(GROUP_SIZE))
    if order:
        groups = [g[diagonal[g].argsort(descending=True, stable=True)] for g in groups]
        groups.sort(key=lambda g: -float(diagonal[g].mean()))
    permutation = torch.cat(groups)
    mean = float(diagonal.mean()) or 1.0
    for step in range(DAMPING_STEPS):
        damped = hessian.clone()
        damped.diagonal().add_(damping * 10**step * mean)
        lower, failed = torch.linalg.cholesky_ex(damped[permutation][:, permutation])
        if not failed:
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
        if not failed:
            return Factor(groups, diagonal, upper, damped)
    raise MixllmError(
        f"{where}: the Hessian has no Cholesky factor; use more calibration text or a larger --damping"
    )
