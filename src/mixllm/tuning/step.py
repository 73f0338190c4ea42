"""One step of tuning: the gradient of some windows' KL divergence, block by block, and Adam with it.

A forward pass keeps the states between blocks, and the backward pass runs each block again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mixllm.blocks import Block, Decoder
from mixllm.tuning.layer import TunedLinear
from mixllm.tuning.seen import Seen

# Learning rates of gains and of places, the latter in codes.
RATES = (1e-3, 8e-3)
# Adam's, below the gradients of single codes, which are some 1e-9 nats.
TINY = 1e-15

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
        self._backward(self._decoder.divergence_gradient(out, target, ids))

    @torch.no_grad()
    def _forward(self, hidden: Tensor) -> Tensor:
        """What enters the first block [B, L, D] -> what leaves the last; what enters each is kept."""
        self._states = [hidden]
        for block, _, seen in self._blocks:
            self._states.append(block(self._states[-1]))
            seen.forget()
        return self._states.pop()

    def _backward(self, gradient: Tensor) -> Tensor:
        """The gradient of what left the last block -> that of what entered the first. Learned things move."""
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
    groups: list[dict[str, Any]] = [{"params": [layer.gain for layer in layers], "lr": rates[0]}]
    places = [layer.cells.place for layer in layers if layer.cells is not None]
    if places:
        groups.append({"params": places, "lr": rates[1], "eps": TINY})
    return torch.optim.Adam(groups, betas=(0.9, 0.99), fused=True)
