"""What rounding sees of each layer on the way: outliers of its inputs, and the error of its outputs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mixllm.format.rounded import Rounded, rows_at_once
from mixllm.ranks import Ranks
from mixllm.rotation import rotate
from mixllm.rounding.fed import fed
from mixllm.rounding.products import on_tensor_cores


@dataclass(frozen=True)
class Observed:
    """One linear layer on the calibration text.

    error: ||X (Wq - W)'|| / ||X W'||, the relative output error that rounding its weight makes.
    peak, mean: of |x|, over all tokens and inputs; what int8 activations must span, and what is typical.
    """

    error: float
    peak: float
    mean: float


@dataclass
class Inputs:
    """Running figures of a layer's inputs, on their device: float32 scalars."""

    peak: Tensor
    total: Tensor
    count: int = 0

    def add(self, x: Tensor) -> None:
        x = x.detach()
        self.peak = torch.maximum(self.peak, _peak(x).float())
        self.total = self.total + torch.linalg.vector_norm(x, 1, dtype=torch.float32)
        self.count += x.numel()


def _peak(x: Tensor) -> Tensor:
    """max |x|, a scalar in its dtype; NaN where there is one."""
    if x.is_cuda:
        norm: Tensor = torch.linalg.vector_norm(x, torch.inf)
        return norm
    # A tenth of the norm's time on a CPU.
    low, high = x.aminmax()
    return torch.maximum(-low, high)


@contextmanager
def watch(linears: dict[str, nn.Linear]) -> Iterator[dict[str, Inputs]]:
    """Follow what the linears are fed inside the context; layers with one input share one Inputs."""
    found: dict[str, Inputs] = {}

    def add(name: str, x: Tensor, before: str | None) -> None:
        if before is not None:
            found.setdefault(name, found[before])
            return
        nothing = torch.zeros((), device=x.device)
        found.setdefault(name, Inputs(nothing, nothing)).add(x)

    with fed(linears, add):
        yield found


def seen_by_all(linears: Iterable[str], inputs: dict[str, Inputs], ranks: Ranks) -> dict[str, Inputs]:
    """What all ranks together saw of these linears; one that none saw has a count of 0.

    Where nothing is calibrated no rank saw anything, and the result is empty.
    """
    names = list(linears)
    if ranks.size == 1 or not inputs:
        return inputs
    device = next(iter(inputs.values())).peak.device
    zero = torch.zeros((), device=device)
    own = [inputs.get(name, Inputs(zero, zero)) for name in names]
    peaks = torch.stack([part.peak for part in own])
    totals = torch.stack([part.total for part in own]).double()
    counts = torch.tensor([part.count for part in own])
    ranks.largest(peaks)
    ranks.add(totals, counts)
    four = zip(names, peaks, totals, counts.tolist(), strict=True)
    return {name: Inputs(peak, total, count) for name, peak, total, count in four}


def observed(energy: Tensor, inputs: Inputs) -> Observed:
    """What was seen of a layer; energy: of all its rows together (see energies)."""
    size, difference = energy.tolist()
    return Observed(
        error=math.sqrt(max(0.0, difference) / size) if size > 0 else 0.0,
        peak=float(inputs.peak),
        mean=float(inputs.total) / inputs.count,
    )


def energies(weight: Tensor, rounded: Rounded, hessian: Tensor, *, rotated: bool) -> Tensor:
    """(||X W'||^2, ||X (Wq - W)'||^2) of a layer or some of its rows, float64 [2] where the weight is.

    weight: [N, K], the model's own; rounded and hessian [K, K]: in the rotated basis if `rotated`.
    """
    total = torch.zeros(2, dtype=torch.float64, device=weight.device)
    # Sums of millions that are looked at and no more.
    with on_tensor_cores():
        for rows in torch.arange(len(weight), device=weight.device).split(rows_at_once(weight.shape[1])):
            w = weight.detach()[rows].float()
            w = rotate(w) if rotated else w
            off = rounded.rows(rows).dequantize() - w
            total += torch.stack([_energy(w, hessian), _energy(off, hessian)])
    return total


def _energy(weight: Tensor, hessian: Tensor) -> Tensor:
    """||X W'||^2, which rounding can bring a hair below 0."""
    return ((weight @ hessian) * weight).sum(dtype=torch.float64)
