"""A quantized linear layer whose row scales, and codes if wanted, can be learned."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from mixllm.config import Format
from mixllm.format.rounded import Rounded, spread
from mixllm.rotation import rotate
from mixllm.tuning.cells import Cells
from mixllm.tuning.seen import Seen


class TunedLinear(nn.Module):
    """y = (x as int8 leaves it) W' * exp(gain) + bias, differentiable by x and by gain.

    gain: float32 [N], 0 at first: the logarithm of the factor on each row's scale. The integers that
    scales multiply are kept as int8, a byte a weight, and spread out at each use; where codes are
    learned, cells make them.
    """

    values: Tensor | None
    scales: Tensor

    def __init__(
        self,
        rounded: Rounded,
        format: Format,
        bias: Tensor | None,
        seen: Seen | None = None,
        weight: Tensor | None = None,
        hessian: Tensor | None = None,
    ) -> None:
        """seen: the activations, shared with layers that read the same input; weight: the float one [N, K],
        where codes are learned, and hessian: see Cells."""
        super().__init__()
        self.bias, self.seen = bias, seen or Seen(format)
        # Buffers, so that layers read from files on the CPU move to where the model runs.
        row_scales = rounded.row_scales
        self.register_buffer("scales", rounded.scales if row_scales is None else row_scales[:, None])
        self.cells, values = None, None
        if weight is None:
            values = _values(rounded)
        else:
            basis = rotate(weight) if format.rotation == "hadamard" else weight
            self.cells = Cells(rounded, basis.to(rounded.codes.device), hessian)
        self.register_buffer("values", values)
        self.gain = nn.Parameter(torch.zeros(rounded.shape[0], device=rounded.codes.device))

    def forward(self, x: Tensor) -> Tensor:
        """x [..., K] -> [..., N] in x's dtype."""
        if self.cells is not None:
            values = self.cells()
        else:
            assert self.values is not None
            values = self.values.float()
        scales = spread(self.scales, values.shape[1]) if self.scales.shape[1] > 1 else self.scales
        weight = (values * scales).to(x.dtype)
        y = nn.functional.linear(self.seen(x), weight) * self.gain.exp()
        return (y if self.bias is None else y + self.bias).to(x.dtype)

    @property
    def learned(self) -> list[nn.Parameter]:
        """What tuning changes: the gain, then places."""
        return [self.gain] if self.cells is None else [self.gain, self.cells.place]

    def result(self, rounded: Rounded) -> Rounded:
        """The layer it was made of, with what was learned."""
        found = rounded.scaled(self.gain.detach().exp())
        if self.cells is not None:
            found = replace(found, codes=self.cells.codes().to(rounded.codes.device))
        return found


def _values(rounded: Rounded) -> Tensor:
    """The integers that scales multiply, int8 [N, K]."""
    k = rounded.shape[1]
    values = rounded.codes.to(torch.int16) - spread(rounded.zeros.to(torch.int16), k)
    if rounded.multipliers is not None:
        values *= spread(rounded.multipliers.to(torch.int16), k)
    return values.to(torch.int8)
