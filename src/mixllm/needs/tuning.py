"""What tuning takes of memory."""

from __future__ import annotations

import torch

from mixllm.blocks.losses import LOGITS_AT_ONCE
from mixllm.errors import MixllmError
from mixllm.needs import limits
from mixllm.needs.sizes import Shapes, Sizes
from mixllm.tuning.tune import WINDOWS


def tuning_needs(
    sizes: Sizes, samples: int, window: int, device: torch.device, dtype: torch.dtype, codes: bool = False
) -> tuple[int, int]:
    """Bytes that tuning takes at its peak, on the GPU (0 without one) and in host memory.

    Where the model runs: what scales multiply, a byte a weight, or, where codes are tuned, their places and
    Adam's two moments in float32; what is outside the blocks; the boundary states of a step; and the logits
    of a part of it or one block's way back, whichever is more. Before that, where it is more: the float
    model's states of all windows and two of its blocks. On the host: its last states, and the layers as they
    were rounded; where codes are tuned, as they become too.
    Raises MixllmError where that is more than can be had: all layers are there at once.
    """
    size, windows = dtype.itemsize, min(WINDOWS, samples)
    state, ends = window * sizes.hidden * size, sizes.ends * size
    back = max(way_back(block, sizes, windows * window, size, codes) for block in sizes.blocks)
    working = (12 if codes else 1) * sizes.weights + ends + (len(sizes.blocks) + 4) * windows * state
    # Logits, or their gradient, beside the softmax of these and of the float model's.
    working += max(12 * min(LOGITS_AT_ONCE[device.type], windows * window * sizes.vocabulary), back)
    targets, layers = samples * state, (1 + codes) * sizes.weights
    if device.type == "cuda":
        working = max(working, targets + 2 * sizes.widest * size + ends)
    if working > (bound := limits.bound(device)):
        raise MixllmError(
            f"tune: all rounded layers take {working / 1e9:.1f} GB, {bound / 1e9:.1f} GB can be had on "
            f"{device}; leave --tune out or give another --device"
        )
    if device.type == "cuda":
        return working, limits.BASE_HOST + limits.cuda_host() + targets + layers
    # A block's way back leaves holes in what malloc holds that the next block's does not fill: with codes
    # up to as much again, from run to run more or less.
    return 0, limits.BASE_HOST + limits.HELD + (1 + codes) * back // 2 + working + targets + layers


def way_back(block: Shapes, sizes: Sizes, tokens: int, size: int, codes: bool) -> int:
    """Bytes that a block of tuned layers takes to be run and go back, beside its parameters.

    For its tokens, what linear layers, norms and attention keep, and the widest input on its way to int8 in
    float32, thrice, and twice more where it comes in another type; of its weights themselves, with codes
    their multipliers spread and places' gradients, and a float32 copy of the largest layer's.
    """
    weights, wide = [n * k for n, k in block.values()], max(k for _, k in block.values())
    copies = 3 + 2 * (size < 4)
    token = int(size * (sizes.kept(block) + 4 * sizes.hidden)) + 16 * sizes.hidden + 4 * copies * wide
    return tokens * token + (size + 8 * codes) * sum(weights) + 4 * max(weights)
