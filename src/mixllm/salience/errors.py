"""What candidates do to a layer's outputs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mixllm.fixed import Product, product_of
from mixllm.kernels.cpu.fixed import FixedWeight
from mixllm.salience.sums import over_tokens


@dataclass(frozen=True)
class Errors:
    """w^q - w of a layer's candidates, of shape [widths, N, K].

    of: inputs x [..., K] -> the outputs' errors x (w^q - w)' [..., widths * N], one width after the other.
    """

    shape: torch.Size
    of: Product

    @classmethod
    def made(cls, errors: Tensor) -> Errors:
        return cls(errors.shape, product_of(errors.flatten(0, 1)))

    def over_tokens(self, delta: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """mixllm.salience.sums.over_tokens of delta [B, L, N] and the errors of x [B, L, K], which in fixed
        point are never written to memory."""
        if not isinstance(self.of, FixedWeight):
            return over_tokens(delta, self.of(x))
        sums, squares = self.of.sums(x, delta)
        return sums.view(len(x), *self.shape[:2]), squares.view(len(x), *self.shape[:2])
