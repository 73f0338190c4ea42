"""One step of tuning: the gradient of some windows' KL divergence, block by block, and Adam with it.

A forward pass keeps the states between blocks, and the backward pass runs each block again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mixllm.blocks import Block, Decoder
from mixllm.blocks.losses import divergence_gradient
from mixllm.tuning.layer import TunedLinear
from mixllm.tuning.seen import Seen

# Learning rates of gains and of places, the latter in codes.
RATES = (1e-3, 8e-3)
# Adam's, below the gradients of gains and of places; those of single codes are some 1e-9 nats.
EPSILONS = (1e-8, 1e-15)
# What gradients are multiplied by, and Adam's epsilons, so that nothing else changes: those of a large
# model's weights are some 1e-7, and float16 has nothing between 0 and 6e-8. A power of two rounds nothing.
SCALE = 1024.0

# A block, the layers in the place of its linears, and what they see.
Tuned = tuple[Block, dict[str, TunedLinear], Seen]


class Step:
    """step(ids, target, part): all that is learned, moved once."""

    def __init__(self, decoder: Decoder, blocks: Sequence[Tuned]) -> None:
        self._decoder, self._blocks = decoder, blocks
        # One tensor that every block's Adam reads; a GPU's wants float32.
        exact = torch.float32 if decoder.device.type == "cuda" else torch.float64
        rates = torch.tensor(RATES, dtype=exact, device=decoder.device)
        self._rates, self._whole = rates, rates.clone()
        self._adams = [_adam(list(linears.values()), rates) for _, linears, _ in blocks]
        self._states: list[Tensor] = []

    def __call__(self, ids: Tensor, target: Tensor, part: float) -> None:
        """Take the step, at a part of the learning rates.

        ids: int64 [B, L]; target: what leaves the float model's last block for them, [B, L, D]; both on the
        decoder's device.
        """
        torch.mul(self._whole, part, out=self._rates)
        out = self._forward(self._decoder.embed(ids))
        self._backward(divergence_gradient(self._decoder, out, target, ids, SCALE))

    @torch.no_grad()
    def _forward(self, hidden: Tensor) -> Tensor:
        """What enters the first block [B, L, D] -> what leaves the last; what enters each is kept."""
        self._states = [hidden]
        for block, _, seen in self._blocks:
            self._states.append(block(self._states[-1]))
            seen.forget()
        return self._states.pop()

    def _backward(self, gradient: Tensor) -> Tensor:
        """The gradient of what left the last block, SCALE times -> that of what entered the first. What is
        learned moves."""
        for (block, linears, seen), adam in zip(self._blocks[::-1], self._adams[::-1], strict=True):
            hidden = self._states.pop().detach().requires_grad_()
            with torch.enable_grad():
                out = block(hidden)
            learned = [parameter for layer in linears.values() for parameter in layer.learned]
            # An expert that no token chose has no gradient.
            gradient, *own = torch.autograd.grad(
                out, [hidden, *learned], gradient, allow_unused=True, materialize_grads=True
            )
            seen.forget()
            for parameter, found in zip(learned, own, strict=True):
                parameter.grad = found
            # At once, so that no more than one block's gradients are there.
            adam.step()
            adam.zero_grad()
        return gradient


def _adam(layers: Sequence[TunedLinear], rates: Tensor) -> torch.optim.Adam:
    """Adam on all that a block's layers learn; rates: of gains and of places, views of which it reads."""
    learned = (
        [layer.gain for layer in layers],
        [layer.cells.place for layer in layers if layer.cells is not None],
    )
    groups: list[dict[str, Any]] = [
        {"params": some, "lr": rate, "eps": SCALE * epsilon}
        for some, rate, epsilon in zip(learned, rates, EPSILONS, strict=True)
        if some
    ]
    return torch.optim.Adam(groups, betas=(0.9, 0.99), fused=True)
