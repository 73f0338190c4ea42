"""The Hessian of a linear layer's inputs, H = X'X, and the factor of it that GPTQ walks along."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mixllm.config import GROUP_SIZE
from mixllm.errors import MixllmError
from mixllm.rotation import rotate
from mixllm.rounding.fed import fed

DAMPING_STEPS = 4
# Rows rotated, and sides of the triangles inverted, at once: large enough for full speed.
ROWS_AT_ONCE, SOLVED_AT_ONCE = 2048, 1024
# Columns of X'X that are summed at once, from the first row to the diagonal: the rest is their mirror. As few
# as a product of them is still fast with.
PANEL = {"cuda": 2048, "cpu": 256}


@dataclass
class Shared:
    """Linear layers that read the same input, H = X'X of that input, float32 [K, K], and X's tokens."""

    names: list[str]
    hessian: Tensor
    tokens: int = 0


@contextmanager
def collect(linears: Mapping[str, nn.Module]) -> Iterator[list[Shared]]:
    """Sum H over everything the linears are fed inside the context; layers with one input share one H."""
    found: list[Shared] = []
    owner: dict[str, Shared] = {}

    def add(name: str, x: Tensor, before: str | None) -> None:
        if name not in owner:
            if before is None:
                found.append(Shared([], x.new_zeros(x.shape[-1], x.shape[-1], dtype=torch.float32)))
            owner[name] = found[-1] if before is None else owner[before]
            owner[name].names.append(name)
        shared = owner[name]
        if shared.names[0] == name:
            add_squares(shared.hessian, x.detach().reshape(-1, x.shape[-1]))
            shared.tokens += x[..., 0].numel()

    with fed(linears, add):
        yield found
    for shared in found:
        mirror(shared.hessian)


def add_squares(hessian: Tensor, x: Tensor) -> None:
    """hessian += x'x for x [T, K], summed in float32; of what is below the diagonal, not all (see mirror).

    Products of two half-precision numbers are exact in float32, so on a GPU the tensor cores take them as
    they are, ten times as fast as float32 copies of them.
    """
    half = x.is_cuda and x.dtype in (torch.bfloat16, torch.float16)
    x = x if half else x.float()
    panel = PANEL[hessian.device.type]
    for start in range(0, len(hessian), panel):
        columns, rows = x[:, start : start + panel], x[:, : start + panel].T
        part = hessian[: start + panel, start : start + panel]
        if half:
            part.add_(torch.mm(rows, columns, out_dtype=torch.float32))
        else:
            part.addmm_(rows, columns)


def mirror(hessian: Tensor) -> None:
    """Fill what add_squares left out, in place."""
    panel = PANEL[hessian.device.type]
    for stop in range(panel, len(hessian), panel):
        hessian[stop:, stop - panel : stop] = hessian[stop - panel : stop, stop:].T


@dataclass(frozen=True)
class Factor:
    """What rounding needs of H, in the order in which columns are rounded.

    numbers: of the groups, in the order of processing. groups: the column numbers of each [L], in that order.
    diagonal: float32 [K], the diagonal of H, in the layer's own column order.
    upper: float32 [K, K], upper Cholesky factor of the damped inverse of H in processing order.
    hessian: float32 [K, K], H itself, in the layer's own column order.
    added: what damping adds to its diagonal.
    """

    numbers: list[int]
    groups: list[Tensor]
    diagonal: Tensor
    upper: Tensor
    hessian: Tensor
    added: float


def rotate_both(hessian: Tensor) -> Tensor:
    """H of the rotated inputs, in place of H [K, K] of the plain ones; returned too."""
    for rows in hessian.split(ROWS_AT_ONCE):
        rows.copy_(rotate(rows))
    for columns in hessian.split(ROWS_AT_ONCE, dim=1):
        columns.copy_(rotate(columns.T).T)
    return hessian


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
    numbers = list(range(len(groups)))
    if order:
        groups = [g[diagonal[g].argsort(descending=True, stable=True)] for g in groups]
        means = torch.stack([diagonal[g].mean() for g in groups]).tolist()
        numbers.sort(key=lambda i: -means[i])
        groups = [groups[i] for i in numbers]
    mean = float(diagonal.mean()) or 1.0
    # Backwards: the upper factor of the inverse is then the inverse of a Cholesky factor, see below.
    backwards = torch.cat(groups).flip(0)
    h = hessian[backwards][:, backwards]
    for step in range(DAMPING_STEPS):
        # What the steps before added stays: a tenth, a hundredth of this one's.
        h.diagonal().add_(damping * 10**step * mean)
        lower, failed = torch.linalg.cholesky_ex(h)
        if not failed:
            del h
            invert_lower(lower)
            added = damping * mean * sum(10.0**taken for taken in range(step + 1))
            return Factor(numbers, groups, diagonal, lower.flip((0, 1)), hessian, added)
    raise MixllmError(
        f"{where}: the Hessian has no Cholesky factor; use more calibration text or a larger --damping"
    )


def invert_lower(lower: Tensor) -> None:
    """Invert a lower triangular matrix [K, K] in place, nearly all of it in matrix products.

    With J the reversal of an order and J A J = L L', A^-1 = (J L^-1 J)' (J L^-1 J), where J L^-1 J is upper
    triangular: the upper Cholesky factor of A^-1, with neither A^-1 made nor a second factorization.

        | A 0 |^-1   |     A^-1         0   |
        | B C |    = | -C^-1 B A^-1    C^-1 |
    """
    n = len(lower)
    if n <= SOLVED_AT_ONCE:
        unit = torch.eye(n, device=lower.device, dtype=lower.dtype)
        lower.copy_(torch.linalg.solve_triangular(lower, unit, upper=False))
        return
    half = n // 2 // SOLVED_AT_ONCE * SOLVED_AT_ONCE or n // 2
    first, below, second = lower[:half, :half], lower[half:, :half], lower[half:, half:]
    invert_lower(first)
    invert_lower(second)
    for columns in range(0, half, SOLVED_AT_ONCE):
        # A's inverse has nothing above its diagonal, so these columns of B A^-1 need only B's from there on.
        stop = min(columns + SOLVED_AT_ONCE, half)
        below[:, columns:stop] = -(second @ (below[:, columns:] @ first[columns:, columns:stop]))
