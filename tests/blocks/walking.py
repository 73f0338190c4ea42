"""A model walked block by block, and whole, by plain autograd: states, logits and gradients of both."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mixllm.blocks import Decoder
from mixllm.blocks.losses import loss_gradient
from mixllm.source import Source
from tests.models import VOCAB

CPU = torch.device("cpu")
LENGTH = 21


def opened(path: Path, dtype: torch.dtype = torch.float32) -> Decoder:
    return Decoder.open(Source(path), CPU, dtype)


def tokens(batch: int, seed: int = 0, length: int = LENGTH) -> Tensor:
    return torch.randint(VOCAB, (batch, length), generator=torch.Generator().manual_seed(seed))


def close(a: Tensor, b: Tensor) -> bool:
    """Equal to float32 rounding, against the tensor's largest value."""
    return a.shape == b.shape and bool((a - b).abs().max() <= 2e-5 * b.abs().max())


def real(decoder: Decoder) -> int:
    return sum(p.numel() for p in decoder.model.parameters() if not p.is_meta)


@contextmanager
def taps(linears: dict[str, nn.Linear]) -> Iterator[tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """What each linear reads, and its output gradient, by name."""
    inputs: dict[str, Tensor] = {}
    deltas: dict[str, Tensor] = {}

    def tap(name: str) -> Any:
        def forward(_: nn.Module, args: tuple[Tensor, ...], output: Any) -> None:
            inputs[name] = args[0].detach()
            output.register_hook(lambda grad: deltas.__setitem__(name, grad))

        return forward

    handles = [linear.register_forward_hook(tap(name)) for name, linear in linears.items()]
    yield inputs, deltas
    for handle in handles:
        handle.remove()


def whole_model(model: Any, ids: Tensor) -> dict[str, Any]:
    """Losses [B], states and gradients at every block boundary, inputs and deltas, by plain autograd."""
    blocks = next(m for m in model.modules() if isinstance(m, nn.ModuleList))
    states: list[Tensor] = []

    def keep(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        states.append(args[0])

    def last(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        states.append(output)

    handles = [block.register_forward_pre_hook(keep) for block in blocks]
    handles.append(blocks[-1].register_forward_hook(last))
    linears = {
        name: module
        for name, module in model.named_modules()
        if type(module) is nn.Linear and module is not model.get_output_embeddings()
    }
    with taps(linears) as (inputs, deltas):
        logits = model(input_ids=ids, use_cache=False).logits
        for state in states:
            state.retain_grad()
        predictions, targets = logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()
        flat = nn.functional.cross_entropy(predictions, targets, reduction="none")
        losses: Any = flat.view(len(ids), -1).mean(dim=1)
        losses.sum().backward()
    for handle in handles:
        handle.remove()
    return {
        "logits": logits.detach(), "states": [s.detach() for s in states],
        "gradients": [s.grad for s in states], "inputs": inputs, "deltas": deltas,
    }  # fmt: skip


def walk(decoder: Decoder, ids: Tensor) -> dict[str, Any]:
    """The same, block by block."""
    states = [decoder.embed(ids)]
    for i in range(len(decoder)):
        with decoder.block(i) as block:
            states.append(block(states[-1]))
    gradients = [loss_gradient(decoder, states[-1], ids) / (ids.shape[1] - 1)]
    inputs, deltas = {}, {}
    for i in reversed(range(len(decoder))):
        hidden = states[i].clone().requires_grad_()
        with decoder.block(i) as block, taps(block.linears) as (seen, grads):
            output: Any = block(hidden)
            output.backward(gradients[0])
        gradients.insert(0, hidden.grad)
        inputs.update(seen)
        deltas.update(grads)
    return {
        "logits": decoder.logits(states[-1], ids), "states": states,
        "gradients": gradients, "inputs": inputs, "deltas": deltas,
    }  # fmt: skip
