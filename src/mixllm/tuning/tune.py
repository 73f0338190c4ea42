"""Row scales, and codes if wanted, learned end to end, with the float model as the teacher.

Rounding sees one layer at a time; what its errors add up to over the whole model can still be made smaller
by the one thing that is not an integer, the scale of each row. They are tuned by Adam on the mean
KL(float || quantized) over windows of text, as the last phase of EfficientQAT (arXiv 2407.11062)
tunes step sizes on a loss. Zeros and multipliers stay, codes too unless they are learned with the scales (see
mixllm.tuning.cells), so nothing changes at run time.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from mixllm.blocks import Decoder
from mixllm.config import Format
from mixllm.format.rounded import Rounded
from mixllm.kernels.precision import float32_products
from mixllm.memory import release
from mixllm.progress import Progress, Stage
from mixllm.rounding.hessian import collect, rotate_both
from mixllm.tuning.layer import TunedLinear
from mixllm.tuning.seen import Seen
from mixllm.tuning.step import Step, Tuned

# Windows a step: enough for a steady gradient, few enough for many steps.
WINDOWS = 4


def tune_scales(
    decoder: Decoder,
    ids: Tensor,
    layers: Mapping[str, Rounded],
    format: Format,
    *,
    epochs: int,
    calibration: Tensor | None = None,
    seed: int,
    progress: Progress,
) -> dict[str, Rounded]:
    """The same layers, by full module name, with tuned row scales; with codes too where calibration is given.

    ids: int64 [samples, L], windows of text, seen `epochs` times each. calibration: the windows that codes
    were rounded by; with others, places would start where codes do not fit each other. The quantized blocks
    are on the decoder's device all the time: a byte a weight.
    """
    steps = -(-len(ids) // WINDOWS)
    order = torch.Generator().manual_seed(seed)
    with (
        ExitStack() as stack,
        # With ten bits of mantissa they are many times as fast on a GPU; gradients are noisier.
        float32_products("high"),
        progress.stage("tune", len(decoder) + epochs * steps) as bar,
    ):
        target = _float_states(decoder, ids, bar)
        release(decoder.device)
        blocks = open_blocks(stack, decoder, layers, format, calibration)
        release(decoder.device)
        tuned = [linears for _, linears, _ in blocks]
        step = Step(decoder, blocks)
        chosen = [
            part for _ in range(epochs) for part in torch.randperm(len(ids), generator=order).split(WINDOWS)
        ]
        for number, which in enumerate(chosen):
            batch, wanted = (_brought(tensor[which], decoder.device) for tensor in (ids, target))
            step(batch, wanted, 1 - (1 - 1 / len(chosen)) * number / len(chosen))
            if number == 0:  # Adam's moments are there now, in pieces of the room that logits had
                release(decoder.device)
            bar.advance()
    return {name: layer.result(layers[name]) for linears in tuned for name, layer in linears.items()}


def _float_states(decoder: Decoder, ids: Tensor, bar: Stage) -> Tensor:
    """What leaves the float model's last block, on the CPU: [samples, L, D]."""
    states = torch.empty(*ids.shape, decoder.hidden_size, device=decoder.device, dtype=decoder.dtype)
    parts = states.split(WINDOWS)
    for hidden, part in zip(parts, ids.split(WINDOWS), strict=True):
        hidden.copy_(decoder.embed(part))
    for _, block in decoder.walk(range(len(decoder))):
        with torch.no_grad():
            for hidden in parts:
                hidden.copy_(block(hidden))
        bar.advance()
    return states.cpu()


def open_blocks(
    stack: ExitStack,
    decoder: Decoder,
    layers: Mapping[str, Rounded],
    format: Format,
    calibration: Tensor | None,
) -> list[Tuned]:
    """All blocks with tuned layers in the place of their linears, until the stack ends; calibration: see
    tune_scales."""
    states = [] if calibration is None else [decoder.embed(part) for part in calibration.split(WINDOWS)]
    return [_open(stack, decoder, i, layers, format, states) for i in range(len(decoder))]


def _open(
    stack: ExitStack,
    decoder: Decoder,
    i: int,
    layers: Mapping[str, Rounded],
    format: Format,
    states: list[Tensor],
) -> Tuned:
    """Block i with tuned layers in the place of its linears, until the stack ends.

    states: what enters the block, where codes are learned; becomes what leaves it with its rounded codes.
    """
    block = stack.enter_context(decoder.block(i))
    linears, seen = {}, Seen(format)
    with torch.no_grad(), collect(block.linears) as found:
        for hidden in states:
            block(hidden)
    hessians: dict[str, Tensor] = {}
    for shared in found:
        hessian = rotate_both(shared.hessian) if format.rotation == "hadamard" else shared.hessian
        hessians |= dict.fromkeys(shared.names, hessian)
    for name, linear in block.linears.items():
        rounded, weight = layers[name].to(decoder.device), linear.weight.detach() if states else None
        linears[name] = TunedLinear(rounded, format, linear.bias, seen, weight, hessians.get(name))
        block.replace(name, linears[name])
        # The float weight is not needed any more, and all blocks are there at once.
        linear.weight = nn.Parameter(linear.weight.to("meta"), requires_grad=False)
    with torch.no_grad():
        states[:] = [block(hidden) for hidden in states]
    seen.forget()
    return block, linears, seen


def _brought(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device, which does not wait for it to finish what it has to do before."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
