"""Whether the kernels compute what a model's own code does: one step both ways, block by block."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Self

import torch
from torch import Tensor, nn

from mixllm.decoding.usual import Step
from mixllm.kernels.cpu.decoder import Decoder, Kept

# What a block adds may differ by so much: a last bit of a hidden state moves some int8 codes by one. Another
# formula differs by a multiple.
SHARE = 0.03


class Watched:
    """Inputs and outputs of a decoder's blocks while its own code runs."""

    def __init__(self, blocks: Iterable[nn.Module]) -> None:
        self.blocks = list(blocks)
        self.inputs: list[Tensor] = []
        self.outputs: list[Tensor] = []

    def __enter__(self) -> Self:
        self.hooks = [block.register_forward_hook(self._note, with_kwargs=True) for block in self.blocks]
        return self

    def _note(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        self.inputs.append(args[0] if args else kwargs["hidden_states"])
        self.outputs.append(output[0] if isinstance(output, tuple) else output)

    def __exit__(self, *error: object) -> None:
        for hook in self.hooks:
            hook.remove()


def difference(
    decoder: Decoder, step: Step, turns: tuple[Tensor, Tensor], kept: Kept, watched: Watched, result: Tensor
) -> str | None:
    """Where the kernels' results are not those of the model's own code, which has just run; None, nowhere.

    kept: the cache as it was before. result: the last hidden states [1, T, hidden].
    """
    if not _near(step.x, watched.inputs[0], torch.zeros_like(step.x)):
        return "the embedding"
    new = slice(step.past, step.past + step.x.shape[1])
    for i, (x, expected) in enumerate(zip(watched.inputs, watched.outputs, strict=True)):
        y = decoder.run(x, *turns, kept, range(i, i + 1), norm=False)
        layer = step.layers[i]
        for ours, theirs in zip(kept.memory[2 * i : 2 * i + 2], (layer.keys, layer.values), strict=True):
            if not _near(ours[:, :, new], theirs[:, :, new], torch.zeros(())):
                return f"block {i}, keys and values"
        if not _near(y, expected, x):
            return f"block {i}"
    y = decoder.run(watched.outputs[-1], *turns, kept, range(0))
    return None if _near(y, result, torch.zeros_like(y)) else "the last norm"


def _near(ours: Tensor, theirs: Tensor, before: Tensor) -> bool:
    """Up to a share of what was added to `before`, and to the rounding of what is stored."""
    apart = float((ours.float() - theirs.float()).norm())
    added = float((theirs.float() - before.float()).norm())
    return apart <= SHARE * added + 2 * torch.finfo(theirs.dtype).eps * float(theirs.float().norm())
