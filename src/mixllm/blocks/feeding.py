"""A block run for what its linear layers are fed, its own output not wanted."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from mixllm.blocks.block import Block
from mixllm.blocks.shell import Enough


def feed(block: Block, states: Iterable[Tensor]) -> None:
    """Run states [B, L, D], one after the other, through the block: every hook sees what each linear is fed.

    The first go through whole. Where they called every linear once, the next ones' forward ends, as soon as
    all have been called again in that order, before the last one's product: a quarter of a Llama block's.
    Which layers are called may depend on the numbers, as experts do, but not whether one is called again
    after all others.
    """
    calls: list[str] = []
    order: list[str] = []

    def hook(name: str) -> Any:
        def called(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            calls.append(name)
            if calls == order:
                raise Enough

        return called

    # Hooks run in the order in which they came: those that see inputs are there already.
    handles = [linear.register_forward_pre_hook(hook(name)) for name, linear in block.linears.items()]
    try:
        for hidden in states:
            calls.clear()
            try:
                block(hidden)
            except Enough:
                continue
            order = list(calls) if sorted(calls) == sorted(block.linears) else []
    finally:
        for handle in handles:
            handle.remove()
