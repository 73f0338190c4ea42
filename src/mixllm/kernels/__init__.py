"""One operation, a mixed-precision linear layer, and the choice of who computes it."""

from __future__ import annotations

from typing import Literal, Protocol

import torch
from torch import Tensor

from mixllm.config import Format
from mixllm.errors import MixllmError
from mixllm.format.mixed import MixedWeight

Backend = Literal["auto", "reference", "cuda"]


class LinearKernel(Protocol):
    """A weight in the layout that a backend runs."""

    def __call__(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x [..., K] -> y [..., N] in x's dtype, rows in the layer's original order."""
        ...


def prepare(weight: MixedWeight, format: Format, backend: Backend = "auto") -> LinearKernel:
    """Lay a stored weight out for a backend; runs once, at load time.

    "cuda": the kernels of mixllm.kernels.cuda, for weights on an NVIDIA GPU. "auto" is the reference
    until those kernels have passed their tests on every GPU that they are built for.
    Raises MixllmError where the backend cannot run.
    """
    with torch.no_grad():
        if backend == "cuda":
            if not weight.rows.is_cuda:
                raise MixllmError(
                    f"backend cuda: the weight is on {weight.rows.device}; move the model to an NVIDIA GPU, "
                    "or choose the reference backend"
                )
            from mixllm.kernels.cuda import prepare as prepare_cuda

            return prepare_cuda(weight, format, weight.rows.device)
        from mixllm.kernels.reference import ReferenceLinear

        return ReferenceLinear(weight, format)
