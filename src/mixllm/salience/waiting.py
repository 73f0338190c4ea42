"""Candidates of blocks that are scored later, kept among the states between blocks.

A block's Hessians need a forward, and so do the states after it: on the walk there or, where memory is
short, on the way back through a stretch of blocks, when those inside it are made again. So its candidates are
rounded then, and wait, packed as in a checkpoint: 12 bits for a weight at widths 4 and 8, and some for
scales.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from mixllm.blocks import States
from mixllm.config import KERNEL_WIDTHS, Format, Rounding
from mixllm.format.mixed import MixedWeight
from mixllm.format.pack import pack, unpack
from mixllm.format.rounded import Rounded

# Candidates of block i are kept under FIRST - i: below the numbers of all that is kept besides.
FIRST = -2


def waiting_bytes(weights: int, widths: Collection[int] = KERNEL_WIDTHS, error: Rounding = "gptq") -> int:
    """What the candidates of so many weights take at most, from 256 inputs a layer on; those rounded to
    nearest are made when they are scored."""
    return weights * (2 * sum(widths) + len(widths)) // 16 if error == "gptq" else 0


class Waiting:
    """Candidates by block, kept in `states`; format: what they are rounded to.

    piece: bytes that are kept as one tensor; in pieces of the states' own size they take each other's places.
    """

    def __init__(self, states: States, format: Format, piece: int) -> None:
        self._states, self._format, self._piece = states, format, piece
        self._layout: dict[int, list[tuple[str, str, int, torch.Size, torch.dtype]]] = {}

    def put(self, i: int, found: dict[str, Rounded]) -> None:
        """Keep the candidates of block i (see mixllm.salience.candidates), by layer."""
        packed = {name: pack(rounded, self._format) for name, rounded in found.items()}
        parts = [(n, k, w.in_features, t) for n, w in packed.items() for k, t in w.tensors().items()]
        # One tensor is one copy; the widest types first, so that each starts at a multiple of its size.
        parts.sort(key=lambda part: -part[3].dtype.itemsize)
        self._layout[i] = [(name, key, k, t.shape, t.dtype) for name, key, k, t in parts]
        whole = torch.cat([t.contiguous().view(-1).view(torch.uint8) for *_, t in parts])
        pieces = (part.clone() for part in whole.split(self._piece))
        self._states.put(FIRST - i, pieces, soon=False)

    def __contains__(self, i: int) -> bool:
        return i in self._layout

    def take(self, i: int) -> dict[str, Rounded]:
        """What was put for block i, which waits no longer."""
        whole = torch.cat(list(self._states.take(FIRST - i)))
        layout = self._layout.pop(i)
        found: dict[str, dict[str, Any]] = {}
        sizes = [shape.numel() * dtype.itemsize for *_, shape, dtype in layout]
        for (name, key, k, shape, dtype), part in zip(layout, whole.split(sizes), strict=True):
            tensor: Tensor = part.view(dtype).view(shape)
            found.setdefault(name, {"in_features": k})[key] = tensor
        return {name: unpack(MixedWeight(**fields), self._format) for name, fields in found.items()}
