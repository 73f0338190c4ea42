"""The short way of a model's head, which is not quantized and has a row for each word."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mixllm.kernels.cpu.dense import dense
from mixllm.kernels.cpu.ops import TYPES

# From there on torch's own product is as fast.
MOST_TOKENS = 8


class ShortHead:
    """Stands where a linear layer's forward did."""

    def __init__(self, layer: nn.Linear) -> None:
        self.layer = layer

    def forward(self, input: Tensor) -> Tensor:
        """As nn.Linear's."""
        weight, shape = self.layer.weight, input.shape
        if (
            torch.is_grad_enabled()
            or torch.compiler.is_compiling()
            or torch.is_autocast_enabled("cpu")
            or not 1 <= shape[:-1].numel() <= MOST_TOKENS
            or input.device.type != "cpu"
            or weight.device.type != "cpu"
            or input.dtype != weight.dtype
            or input.dtype not in TYPES
            or shape[-1] != weight.shape[1]
            or not weight.is_contiguous()
        ):
            return nn.functional.linear(input, weight)
        return dense(input.reshape(-1, shape[-1]).contiguous(), weight).reshape(*shape[:-1], -1)
