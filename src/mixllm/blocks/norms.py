"""Root mean square norms in one kernel, where that is what the model's own code computes.

Its code goes over the states in float32 in some seven launches, and in more on the way back: a tenth of a
block's forward and backward of Llama-3.1-8B's shape on an H200.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Of the distance between two numbers: the model's code may round on the way, and sums in another order.
CLOSE = 4


def fuse_norms(blocks: Iterable[nn.Module], device: torch.device, dtype: torch.dtype) -> int:
    """Give every such norm of the blocks torch's own as its forward; returns how many.

    A kind of norm is one where it is named so and an example of it, with a random weight on the device, gives
    what torch's gives for random states, to rounding. Gemma's, which adds 1 to its weight, is left as it is.
    """
    norms = [m for block in blocks for m in block.modules() if type(m).__name__.endswith("RMSNorm")]
    same: dict[Any, bool] = {}
    for norm in norms:
        kind = type(norm), _epsilon(norm), [(name, p.shape) for name, p in norm.named_parameters()]
        if str(kind) not in same:
            same[str(kind)] = _is_usual(norm, device, dtype)
        if same[str(kind)]:
            norm.forward = partial(_forward, norm)
    return sum(isinstance(norm.forward, partial) for norm in norms)


def _is_usual(norm: nn.Module, device: torch.device, dtype: torch.dtype) -> bool:
    shapes = [parameter.shape for parameter in norm.parameters()]
    if _epsilon(norm) is None or len(shapes) != 1 or len(shapes[0]) != 1:
        return False
    example: Any = copy.deepcopy(norm).to_empty(device=device)
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        example.weight.normal_(generator=generator)
        x = torch.randn(7, *shapes[0], device=device, generator=generator).to(dtype)
        own, usual = example(x), _forward(example, x)
    if own.dtype != usual.dtype or own.shape != usual.shape:
        return False
    off, size = (own.double() - usual.double()).abs(), own.double().abs()
    return bool((off <= CLOSE * torch.finfo(dtype).eps * size).all())


def _epsilon(norm: nn.Module) -> float | None:
    found = getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
    return found if isinstance(found, float) else None


def _forward(norm: Any, x: Tensor) -> Tensor:
    return F.rms_norm(x, norm.weight.shape, norm.weight, _epsilon(norm))
