"""Which kernels layers launch for many tokens, known before there is a layer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch

from mixllm.config import GROUP_SIZE, Format
from mixllm.kernels.cuda import hopper, ops, quantizing, skinny
from mixllm.kernels.cuda.build import require_compiler
from mixllm.kernels.cuda.launch import Kernel, device
from mixllm.kernels.cuda.layout import TILE
from mixllm.kernels.cuda.tiles import Scales, choose


def kernels_of_many(
    shapes: Iterable[tuple[int, int]], format: Format, tokens: int, dtype: torch.dtype, index: int
) -> list[Callable[[], Kernel]]:
    """What compiles and loads each kernel that mixed layers [N, K] launch on a GPU for so many tokens of this
    dtype; nothing for as few as skinny.py takes.

    Scales of groups are taken to be float16, as all are whose layers need no larger ones.
    Raises MixllmError for a GPU older than sm_80 and where NVRTC is missing.
    """
    require_compiler()
    target, scales = device(index), Scales.of(format, float32=False)
    group = 0 if format.activation_group == "token" else format.activation_group
    rotate, tiled = format.rotation == "hadamard", hopper.takes(index, scales, tokens)
    summed = tiled and scales.unsigned
    found: set[tuple[Callable[..., Kernel], tuple[Any, ...]]] = set()
    for channels, inputs in set(shapes):
        padded, tail = quantizing.padded_inputs(inputs), inputs % GROUP_SIZE > 0
        groups = padded // GROUP_SIZE
        if skinny.takes(index, scales, tokens, channels, groups):
            continue
        if tiled:
            # Rows of each width fill tiles of their own, so there may be one more.
            for tiles in (-(-channels // TILE), -(-channels // TILE) + 1):
                best = hopper.choose(scales, tokens, tiles, groups, target.multiprocessors)
                found.add((hopper.product, (index, scales, best)))
        else:
            found.add((ops.product, (index, scales, choose(scales, tokens, target.shared_limit))))
        if tiled and inputs % 8 == 0 and quantizing.takes_many(dtype, tokens, padded):
            found.add((quantizing.quantizer_of_many, (index, dtype, rotate, tail, group, summed)))
        else:
            vectors, _, _, parts = quantizing.launch_shape(
                tokens, padded, target.capability >= (9, 0), group, tiled
            )
            order = (0, tiled + summed, parts)
            found.add((quantizing.quantizer, (index, dtype, vectors, rotate, tail, group, *order)))
    return [partial(make, *arguments) for make, arguments in found]
