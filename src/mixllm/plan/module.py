"""The widths of one layer's output channels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ModulePlan:
    """One linear layer; widths: uint8 [N], bits of each output channel."""

    in_features: int
    widths: Tensor

    @property
    def out_features(self) -> int:
        return self.widths.shape[0]

    def rows(self, width: int) -> Tensor:
        """The numbers of the rows of this width, int64, increasing."""
        return torch.nonzero(self.widths == width)[:, 0]
