"""One operation, a mixed-precision linear layer, and the choice of who computes it."""

from __future__ import annotations

import warnings
from functools import cache
from typing import Literal, Protocol

import torch
from torch import Tensor

from mixllm.config import Format
from mixllm.errors import MixllmError
from mixllm.format.mixed import MixedWeight
from mixllm.format.pack import for_kernels

Backend = Literal["auto", "reference", "cuda", "cpu"]


class LinearKernel(Protocol):
    """A weight in the layout that a backend runs."""

    def __call__(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x [..., K] -> y [..., N] in x's dtype, rows in the layer's original order."""
        ...


def prepare(
    weight: MixedWeight, format: Format, backend: Backend = "auto", *, ahead: bool = True
) -> LinearKernel:
    """Lay a stored weight out for a backend; runs once, at load time.

    Every backend has rows of 4 and of 8 bits, and rows of other widths become these.

    "cuda": the kernels of mixllm.kernels.cuda, for weights on an NVIDIA GPU. "cpu": those of
    mixllm.kernels.cpu, for weights on the CPU. "auto" is the one of the weight's device: on a GPU "cuda",
    on the CPU "cpu", or, with one warning, the reference where mixllm was installed without a compiler;
    elsewhere the reference.
    ahead: kernels for any number of tokens are compiled and loaded here; otherwise each at its first use.
    Raises MixllmError where the backend cannot run.
    """
    from mixllm.kernels import cpu

    on_cpu = weight.rows.device.type == "cpu"
    # torch for AMD calls its devices cuda too.
    on_nvidia = weight.rows.is_cuda and torch.version.hip is None
    with torch.no_grad():
        weight = for_kernels(weight, format)
        if backend == "cuda" or (backend == "auto" and on_nvidia):
            if not on_nvidia:
                raise MixllmError(
                    f"backend cuda: the weight is on {weight.rows.device}; move the model to an NVIDIA GPU, "
                    "or choose the reference backend"
                )
            from mixllm.kernels.cuda import prepare as prepare_cuda

            return prepare_cuda(weight, format, weight.rows.device, ahead=ahead)
        if backend == "cpu" and not on_cpu:
            raise MixllmError(
                f"backend cpu: the weight is on {weight.rows.device}; move the model to the CPU"
            )
        if backend == "cpu" or (backend == "auto" and on_cpu and cpu.available()):
            return cpu.prepare(weight, format)
        if backend == "auto" and on_cpu:
            _warn_of_slow_layers()
        from mixllm.kernels.reference import ReferenceLinear

        return ReferenceLinear(weight, format)


@cache
def _warn_of_slow_layers() -> None:
    warnings.warn(
        "mixllm was installed without its CPU kernels (no wheel for this machine and no C++ compiler); "
        "quantized layers run in plain torch, many times slower",
        stacklevel=2,
    )
