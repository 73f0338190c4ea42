"""One decoder block with its weights in memory."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor, nn

# A block's arguments after the hidden states: (positional, keyword).
Arguments = tuple[tuple[Any, ...], dict[str, Any]]


class Block:
    """A block of a Decoder, whole until the context that gave it ends.

    module: the model's own block. linears: full module name -> nn.Linear, as they were at first.
    attention: what it runs in (see mixllm.blocks.attention).
    """

    def __init__(
        self,
        module: nn.Module,
        prefix: str,
        index: int,
        linears: dict[str, nn.Linear],
        arguments: dict[tuple[int, int], list[Arguments]],
        attention: AbstractContextManager[Any],
    ) -> None:
        self.module = module
        self.linears = linears
        self._attention = attention
        self._prefix, self._index = prefix, index
        self._arguments = arguments
        paths = {id(part): path for path, part in module.named_modules()}
        self._paths = {name: paths[id(linear)] for name, linear in linears.items()}
        self._replaced: dict[str, nn.Module] = {}

    def __call__(self, hidden: Tensor) -> Tensor:
        """One forward, [B, L, D] -> [B, L, D], differentiable by `hidden` (never by the weights).

        Raises ValueError when Decoder.embed has not yet seen token ids of this [B, L].
        """
        shape = (hidden.shape[0], hidden.shape[1])
        if shape not in self._arguments:
            raise ValueError(f"{self._prefix}: embed has seen no token ids of shape {list(shape)}")
        args, kwargs = self._arguments[shape][self._index]
        with self._attention:
            return first(self.module(hidden, *args, **kwargs))

    def replace(self, name: str, module: nn.Module) -> None:
        """Put `module` where the linear of this full name is, until the context ends."""
        path = self._paths[name]
        self._replaced.setdefault(path, self.module.get_submodule(path))
        self.module.set_submodule(path, module)

    def restore(self) -> None:
        """Undo every replace."""
        for path, module in self._replaced.items():
            self.module.set_submodule(path, module)
        self._replaced.clear()


def first(output: Any) -> Tensor:
    """The hidden states of a block's output, which is a tensor or a tuple that starts with it."""
    hidden: Tensor = output[0] if isinstance(output, tuple) else output
    return hidden
