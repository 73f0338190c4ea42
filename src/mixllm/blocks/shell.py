"""A model's own forward, run around its blocks: stand-ins take the blocks' places.

So no model's code is copied: what enters the first block and the blocks' other arguments (masks,
position embeddings) are recorded by stand-ins that pass the hidden states on, and the final norm and
the head are reached by a stand-in that returns the hidden states it was given.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mixllm.blocks.block import Arguments


class Shell:
    """The model without the insides of its blocks.

    outputs: how many things a block returns; 0, the bare hidden states and no tuple.
    """

    def __init__(self, model: Any, blocks: nn.ModuleList, device: torch.device) -> None:
        self.model, self.blocks, self.device = model, blocks, device
        self.outputs = 0

    @torch.no_grad()
    def enter(self, ids: Tensor, count: int) -> tuple[Tensor, list[Arguments]]:
        """Run ids [B, L] up to block `count`: the hidden states [B, L, D] that enter block 0, and the
        other arguments of the first `count` blocks."""
        entered: list[Tensor] = []
        recorded: list[Arguments] = []

        def record(*args: Any, **kwargs: Any) -> Any:
            hidden, arguments = _split(args, kwargs)
            entered.append(hidden)
            recorded.append(arguments)
            if len(recorded) == count:
                raise Enough
            return self._output(hidden)

        try:
            self._run(ids, [record] * len(self.blocks))
        except Enough:
            return entered[0], recorded
        raise RuntimeError(f"the model called {len(recorded)} of its {len(self.blocks)} blocks")

    def logits(self, hidden: Tensor, ids: Tensor) -> Tensor:
        """The logits [B, L, V] of hidden states [B, L, D] that left the last block."""

        def skip(*args: Any, **kwargs: Any) -> Any:
            return self._output(_split(args, kwargs)[0])

        def inject(*args: Any, **kwargs: Any) -> Any:
            return self._output(hidden)

        logits: Tensor = self._run(ids, [skip] * (len(self.blocks) - 1) + [inject]).logits
        return logits

    def _output(self, hidden: Tensor) -> Any:
        return (hidden, *[None] * (self.outputs - 1)) if self.outputs else hidden

    def _run(self, ids: Tensor, stand_ins: list[Callable[..., Any]]) -> Any:
        for block, stand_in in zip(self.blocks, stand_ins, strict=True):
            block.forward = stand_in
        try:
            return self.model(input_ids=ids.to(self.device), use_cache=False)
        finally:
            for block in self.blocks:
                del block.forward


class Enough(Exception):
    """Ends a forward once all that is wanted of it has been seen."""


def _split(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Arguments]:
    if args:
        return args[0], (args[1:], kwargs)
    rest = dict(kwargs)
    return rest.pop("hidden_states"), ((), rest)
