"""A quantized linear layer whose row scales can be learned."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mixllm.config import Format
from mixllm.format.rounded import Rounded, spread
from mixllm.tuning.seen import Seen


class TunedLinear(nn.Module):
    """y = (x as int8 leaves it) W' * exp(gain) + bias, differentiable by x and by gain.

    gain: float32 [N], 0 at first: the logarithm of the factor on each row's scale. The integers that
    scales multiply are kept as int8, a byte a weight, and spread out at each use.
    """

    values: Tensor
    scales: Tensor

    def __init__(
        self, rounded: Rounded, format: Format, bias: Tensor | None, seen: Seen | None = None
    ) -> None:
        """seen: the activations, shared with layers that read the same input."""
        super().__init__()
        self.bias, self.seen = bias, seen or Seen(format)
        k = rounded.shape[1]
        values = rounded.codes.to(torch.int16) - spread(rounded.zeros.to(torch.int16), k)
        if rounded.multipliers is not None:
            values *= spread(rounded.multipliers.to(torch.int16), k)
        scales = rounded.scales if rounded.row_scales is None else rounded.row_scales[:, None]
        # Buffers, so that layers read from files on the CPU move to where the model runs.
        self.register_buffer("values", values.to(torch.int8))
        self.register_buffer("scales", scales)
        self.gain = nn.Parameter(torch.zeros(len(values), device=values.device))

    def forward(self, x: Tensor) -> Tensor:
        """x [..., K] -> [..., N] in x's dtype."""
        scales = spread(self.scales, self.values.shape[1]) if self.scales.shape[1] > 1 else self.scales
        weight = (self.values.float() * scales).to(x.dtype)
        y = nn.functional.linear(self.seen(x), weight) * self.gain.exp()
        return (y if self.bias is None else y + self.bias).to(x.dtype)
