"""One operation, a mixed-precision linear layer, and the choice of who computes it."""

from __future__ import annotations

from typing import Literal, Protocol

import torch
from torch import Tensor

from mixllm.config import Format
from mixllm.format.mixed import MixedWeight

Backend = Literal["auto", "reference"]


class LinearKernel(Protocol):
    """A weight in the layout that a backend runs."""

    def __call__(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x [..., K] -> y [..., N] in x's dtype, rows in the layer's original order."""
        ...


def prepare(weight: MixedWeight, format: Format, backend: Backend = "auto") -> LinearKernel:
    """Lay a stored weight out for its device's backend; runs once, at load time."""
    from mixllm.kernels.reference import ReferenceLinear

    with torch.no_grad():
        return ReferenceLinear(weight, format)
