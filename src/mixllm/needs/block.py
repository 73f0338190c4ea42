"""What working on one block takes of memory, everything but the states between blocks."""

from __future__ import annotations

import torch

from mixllm.blocks.losses import LOGITS_AT_ONCE
from mixllm.format.rounded import ELEMENTS_AT_ONCE
from mixllm.needs.sizes import Shapes, Sizes, inputs, weights_of

# Float32 copies of the rows that are being rounded.
COPIES = 8


def working(sizes: Sizes, batch: int, dtype: torch.dtype, kind: str, measured: int) -> int:
    """Bytes at the peak of everything but the states between blocks."""
    size = dtype.itemsize
    most = max(_in_block(block, sizes, batch, size, measured) for block in sizes.blocks)
    if measured:
        # A block and the next; logits, their softmax in float32, and that as their gradient in their dtype.
        logits = min(LOGITS_AT_ONCE[kind], batch * sizes.vocabulary)
        most = max(most, 2 * sizes.widest * size + 8 * logits + 4 * batch * sizes.hidden * size)
    return most + sizes.ends * size


def _in_block(block: Shapes, sizes: Sizes, batch: int, size: int, measured: int) -> int:
    """The most that working on a block takes; size: bytes of a value."""
    weights, hidden = weights_of(block), sizes.hidden
    wide = max(max(shape) for shape in block.values())
    read = [k for _, k in inputs(block)]
    hessians = 4 * sum(k * k for k in read)
    # A block and the next one, read ahead.
    common = 2 * weights * size
    forward = batch * (size * (3 * wide + 4 * hidden) + 8 * hidden)
    # All Hessians; of the widest its ordered copy and its factor, then the factor and rows that become codes.
    widest = 4 * max(k * k for k in read)
    rows = 4 * COPIES * min(ELEMENTS_AT_ONCE, max(1, measured) * max(n * k for n, k in block.values()))
    rounding, factoring, collecting = (
        hessians + widest + rows,
        hessians + 2 * widest,
        hessians + widest + forward,
    )
    moments = [forward, rounding, factoring, collecting]
    if measured:
        errors = measured * weights * size
        # The widest input is that of the last layer, which is rounded before all others.
        moments[1] += measured * size * max(n * k for n, k in block.values() if k == max(read))
        # Beside what linear layers keep, norms and attention with their own backward pass, or a layer's
        # output errors and these times its gradient.
        kept = int(size * sizes.kept(block))
        moments.append(errors + batch * (kept + size * 9 * hidden + 16 * hidden))
        moments.append(errors + batch * (kept + size * 2 * measured * wide))
    return common + max(moments)


def leaving(sizes: Sizes) -> int:
    """Host bytes of a block's codes on their way to a file: packed, and as they are written."""
    return 2 * sizes.widest * 5 // 8
