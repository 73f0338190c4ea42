"""The CPU backend: AMX, AVX-512, AVX-VNNI, AVX2, i8mm, NEON or portable C++, the best the machine has."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from mixllm.config import Format
from mixllm.errors import MixllmError
from mixllm.format.mixed import MixedWeight
from mixllm.kernels.cpu import ops
from mixllm.kernels.cpu.layout import to_kernel_order
from mixllm.kernels.cpu.library import available, instruction_sets

__all__ = ["CpuLinear", "available", "instruction_sets", "prepare"]


class CpuLinear:
    """A weight in the kernels' order; x [..., K] -> y [..., N] in x's dtype, summed in float32."""

    def __init__(self, weight: MixedWeight, format: Format, isa: int) -> None:
        laid_out = to_kernel_order(weight, format)
        self.tensors, self.numbers = laid_out.tensors(), list(laid_out.numbers)
        self.described = ops.describe(self.tensors, self.numbers)
        self.isa = isa

    def __getstate__(self) -> dict[str, object]:
        """For copies and pickles: addresses hold for one object, instructions for one machine."""
        return {"tensors": self.tensors, "numbers": self.numbers}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self.described = ops.describe(self.tensors, self.numbers)
        self.isa = 0

    def __call__(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Raises MixllmError for a wrong dtype, shape or device."""
        flat = x.reshape(x.shape[:-1].numel(), x.shape[-1])
        # The operator costs as much as a small layer's product; only a traced program needs it.
        if torch.compiler.is_compiling():
            y = ops.cpu_linear(flat, bias, self.tensors, self.numbers, self.isa)
        else:
            y = ops.run(self.described, flat, bias, self.isa)
        return cast(Tensor, y.reshape(*x.shape[:-1], self.numbers[1]))


def prepare(weight: MixedWeight, format: Format, isa: str | None = None) -> CpuLinear:
    """Lay a stored weight out for the kernels; runs once, at load time.

    isa: one of instruction_sets(); None, the best. Raises MixllmError where the machine lacks it or the
    kernels were not built.
    """
    names = instruction_sets()
    if isa is not None and isa not in names:
        raise MixllmError(f"CPU kernels: no {isa} here; this machine has {', '.join(names)}")
    return CpuLinear(weight, format, 0 if isa is None else names.index(isa))
