"""Gradients of losses by the states that leave a decoder's last block.

A token's loss depends on its own states alone, so a few tokens at a time go through norm and head and back:
neither logits nor their gradient are ever there for whole windows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from mixllm.blocks.decoder import Decoder

# Logits that are made at once, whatever the vocabulary: 512 and 24 MiB in float32. Each time the model's
# code around its blocks is gone through once, for which a GPU waits where they are few. On a CPU they are as
# many as malloc keeps for the next time (glibc: 32 MiB); what it gives back to the system comes again page by
# page, which can take longer than the product.
LOGITS_AT_ONCE = {"cuda": 2**27, "cpu": 3 * 2**21}


def loss_gradient(decoder: Decoder, hidden: Tensor, ids: Tensor) -> Tensor:
    """d(summed next-token NLL, in nats) / d(hidden), for hidden [B, L, D] after the last block of tokens ids
    int64 [B, L]."""
    hidden, ids = hidden.to(decoder.device), ids.to(decoder.device)

    def off(part: slice, logits: Tensor) -> Tensor:
        return _nll_gradient(logits, ids[:, part.start + 1 : part.stop + 1])

    return _gradient(decoder, hidden, ids, off)


def divergence_gradient(
    decoder: Decoder, hidden: Tensor, target: Tensor, ids: Tensor, scale: float = 1.0
) -> Tensor:
    """d(scale * mean KL(target || hidden), in nats a predicted token) / d(hidden), float [B, L, D].

    hidden, target: states after the last block, of tokens ids int64 [B, L]. By the logits it is softmax(those
    of hidden) - softmax(those of target); autograd would have five tensors of their size at once for it, of
    which three do.
    """

    def off(part: slice, logits: Tensor) -> Tensor:
        wanted = decoder.logits(target[:, part], ids[:, part]).softmax(dim=-1, dtype=torch.float32)
        return logits.softmax(dim=-1, dtype=torch.float32).sub_(wanted).to(logits.dtype)

    return _gradient(decoder, hidden, ids, off).div_(len(ids) * (ids.shape[1] - 1) / scale)


def _gradient(
    decoder: Decoder, hidden: Tensor, ids: Tensor, off: Callable[[slice, Tensor], Tensor]
) -> Tensor:
    """d(loss) / d(hidden), [B, L, D]; off: which tokens, their logits -> d(loss) / d(logits)."""
    gradient = torch.zeros_like(hidden)
    for part in _parts(decoder, ids):
        gradient[:, part] = _part(decoder, hidden[:, part].detach(), ids[:, part], partial(off, part))
    return gradient


def _part(decoder: Decoder, hidden: Tensor, ids: Tensor, off: Callable[[Tensor], Tensor]) -> Tensor:
    """A part's gradient. What it takes is gone when it returns, before the next part takes as much."""
    hidden.requires_grad_()
    with torch.enable_grad():
        logits = decoder.logits(hidden, ids)
    with torch.no_grad():
        found = off(logits.detach())
    return torch.autograd.grad(logits, hidden, found)[0]


def _parts(decoder: Decoder, ids: Tensor) -> Iterator[slice]:
    """The predicted tokens of windows [B, L], a few at a time."""
    step = max(1, LOGITS_AT_ONCE[decoder.device.type] // (decoder.vocabulary * len(ids)))
    predicted = ids.shape[1] - 1
    for start in range(0, predicted, step):
        yield slice(start, min(start + step, predicted))


def _nll_gradient(logits: Tensor, targets: Tensor) -> Tensor:
    """d(summed NLL of targets, in nats) / d(logits), in the dtype of logits [B, L, V]: softmax, less 1 at the
    targets int64 [B, L].

    Autograd would go over as many numbers three times more, each time in new memory.
    """
    off = logits.softmax(dim=-1, dtype=torch.float32)
    at = targets.to(off.device)[..., None]
    off.scatter_add_(-1, at, torch.full_like(at, -1, dtype=off.dtype))
    return off.to(logits.dtype)
