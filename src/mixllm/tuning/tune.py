"""Row scales, and codes if wanted, learned end to end, with the float model as the teacher.

Rounding sees one layer at a time; what its errors add up to over the whole model can still be made smaller
by the one thing that is not an integer, the scale of each row. They are tuned by Adam on the mean
KL(float || quantized) over windows of text, as the last phase of EfficientQAT (arXiv 2407.11062)
tunes step sizes on a loss. Zeros and multipliers stay, codes too unless they are learned with the scales (see
mixllm.tuning.cells), so nothing changes at run time.

The gradient goes through the model block by block: a forward pass keeps the states between blocks, and the
backward pass runs each block again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mixllm.blocks import Block, Decoder
from mixllm.config import Format
from mixllm.format.rounded import Rounded
from mixllm.progress import Progress, Stage
from mixllm.rounding.hessian import collect, rotate_both
from mixllm.tuning.layer import TunedLinear
from mixllm.tuning.seen import Seen

LEARNING_RATE = 1e-3
# Of places, in codes.
PLACE_RATE = 8e-3
# Adam's, below the gradients of single codes, which are some 1e-9 nats.
TINY = 1e-15
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
        _quick_products(),
        progress.stage("tune", len(decoder) + epochs * steps) as bar,
    ):
        target = _float_states(decoder, ids, bar)
        states = [] if calibration is None else [decoder.embed(part) for part in calibration.split(WINDOWS)]
        blocks = [_open(stack, decoder, i, layers, format, states) for i in range(len(decoder))]
        tuned = [linears for _, linears, _ in blocks]
        every = [layer for linears in tuned for layer in linears.values()]
        groups: list[dict[str, Any]] = [{"params": [layer.gain for layer in every]}]
        places = [layer.cells.place for layer in every if layer.cells is not None]
        if places:
            groups.append({"params": places, "lr": PLACE_RATE, "eps": TINY})
        adam = torch.optim.Adam(groups, lr=LEARNING_RATE, betas=(0.9, 0.99), fused=True)
        fading = torch.optim.lr_scheduler.LinearLR(adam, 1.0, 1 / (epochs * steps), epochs * steps)
        for _ in range(epochs):
            for chosen in torch.randperm(len(ids), generator=order).split(WINDOWS):
                _set_gradients(decoder, blocks, *(_brought(t[chosen], decoder.device) for t in (ids, target)))
                adam.step()
                fading.step()
                bar.advance()
    return {name: layer.result(layers[name]) for linears in tuned for name, layer in linears.items()}


@contextmanager
def _quick_products() -> Iterator[None]:
    """Let float32 products have ten bits of mantissa, many times as fast on a GPU; gradients are noisier."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


# A block, the layers in the place of its linears, and what they see.
Tuned = tuple[Block, dict[str, TunedLinear], Seen]


def _float_states(decoder: Decoder, ids: Tensor, bar: Stage) -> Tensor:
    """What leaves the float model's last block, on the CPU: [samples, L, D]."""
    states = [decoder.embed(part) for part in ids.split(WINDOWS)]
    for _, block in decoder.walk(range(len(decoder))):
        with torch.no_grad():
            for j, hidden in enumerate(states):
                states[j] = block(hidden)
        bar.advance()
    return torch.cat([hidden.cpu() for hidden in states])


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


def _set_gradients(decoder: Decoder, blocks: list[Tuned], ids: Tensor, target: Tensor) -> None:
    """Put the gradient of the windows' mean KL divergence into all that is tuned."""
    states = [decoder.embed(ids)]
    with torch.no_grad():
        for block, _, seen in blocks:
            states.append(block(states[-1]))
            seen.forget()
    gradient = decoder.divergence_gradient(states.pop(), target, ids)
    for block, linears, seen in reversed(blocks):
        hidden = states.pop().requires_grad_()
        with torch.enable_grad():
            out = block(hidden)
        learned = [parameter for layer in linears.values() for parameter in layer.learned]
        # An expert that no token chose has no gradient.
        gradient, *own = torch.autograd.grad(
            out, [hidden, *learned], gradient, allow_unused=True, materialize_grads=True
        )
        seen.forget()
        for parameter, part in zip(learned, own, strict=True):
            parameter.grad = part
