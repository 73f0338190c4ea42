"""One operator for a whole layer where torch.compile traces it.

What to launch is worked out from the number of tokens, in Python that no graph can hold (tables read from
files, tiles chosen); it is worked out when the operator runs. The graph holds a number for the layer.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from weakref import WeakValueDictionary

import torch
from torch import Tensor

_NUMBERS = count()
_LAYERS: WeakValueDictionary[int, Callable[[Tensor, Tensor | None], Tensor]] = WeakValueDictionary()

_LIBRARY = torch.library.Library("mixllm", "FRAGMENT")
_LIBRARY.define("opaque_linear(Tensor x, int layer, Tensor? bias, SymInt channels) -> Tensor")


def number(layer: Callable[[Tensor, Tensor | None], Tensor]) -> int:
    """A new number by which the operator finds the layer for as long as it lives."""
    found = next(_NUMBERS)
    _LAYERS[found] = layer
    return found


def opaque_linear(x: Tensor, layer: int, bias: Tensor | None, channels: int) -> Tensor:
    """x [..., K] -> [..., channels] in x's dtype, by the layer of that number."""
    y: Tensor = torch.ops.mixllm.opaque_linear(x, layer, bias, channels)
    return y


def _run(x: Tensor, layer: int, bias: Tensor | None, channels: int) -> Tensor:
    return _LAYERS[layer](x, bias)


def _like(x: Tensor, layer: int, bias: Tensor | None, channels: int) -> Tensor:
    return x.new_empty((*x.shape[:-1], channels))


_LIBRARY.impl("opaque_linear", _run, "CompositeExplicitAutograd")
torch.library.register_fake("mixllm::opaque_linear", _like, lib=_LIBRARY)
