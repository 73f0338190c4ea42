"""The tensors of one mixed-precision linear layer, exactly as a checkpoint holds them.

Rows are sorted by width, each kind in its original order.

    rows          int32  [N]             rows[i] is the original number of sorted row i
    codes4        uint8  [n4, ceil(K/2)] two codes a byte, the even input in the low nibble
    zeros4        uint8  [n4, ceil(Z/2)] two zeros a byte, likewise; Z = G, or 1 for weight_scale "row"
    scales4       "group": float16 [n4, G] (float32 where float16 would overflow or lose bits)
                  "group_int", "row": float32 [n4]
    multipliers4  uint8  [n4, ceil(G/2)] "group_int" only: multiplier - 1, two a byte
    codes8        int8   [n8, K]
    scales8       "group": as scales4, [n8, G]; "group_int", "row": float32 [n8]

Rows of 3, 5 or 6 bits have the tensors of 4-bit rows, codes and zeros in so many bits each (see
mixllm.format.bits); where there are none, these are None.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from mixllm.config import WIDTHS


@dataclass(frozen=True)
class MixedWeight:
    """The stored tensors of a linear layer [N, K]; see the module's table."""

    in_features: int
    rows: Tensor
    codes4: Tensor
    zeros4: Tensor
    scales4: Tensor
    codes8: Tensor
    scales8: Tensor
    multipliers4: Tensor | None = None
    codes3: Tensor | None = None
    zeros3: Tensor | None = None
    scales3: Tensor | None = None
    multipliers3: Tensor | None = None
    codes5: Tensor | None = None
    zeros5: Tensor | None = None
    scales5: Tensor | None = None
    multipliers5: Tensor | None = None
    codes6: Tensor | None = None
    zeros6: Tensor | None = None
    scales6: Tensor | None = None
    multipliers6: Tensor | None = None

    @property
    def out_features(self) -> int:
        return self.rows.shape[0]

    @property
    def counts(self) -> dict[int, int]:
        """How many rows of each width it has; 4 and 8 always, the others where there are some."""
        tensors = self.tensors()
        return {width: len(tensors[f"codes{width}"]) for width in WIDTHS if f"codes{width}" in tensors}

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by their names in a checkpoint."""
        named = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "in_features"}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    def to(self, device: torch.device | str) -> MixedWeight:
        """The layer with its tensors on another device."""
        moved: dict[str, Any] = {name: tensor.to(device) for name, tensor in self.tensors().items()}
        return replace(self, **moved)
