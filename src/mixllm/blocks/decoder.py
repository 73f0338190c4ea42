"""Any Hugging Face decoder, one block at a time, through the model's own code."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from mixllm.blocks.ahead import ReadAhead
from mixllm.blocks.attention import quick_attention
from mixllm.blocks.block import Arguments, Block
from mixllm.blocks.norms import fuse_norms
from mixllm.blocks.probe import probe
from mixllm.blocks.shell import Shell
from mixllm.blocks.skeleton import find_blocks, linears, skeleton
from mixllm.blocks.upload import Upload
from mixllm.blocks.weights import Place, place, read, require_no_more, require_whole, tie, unload
from mixllm.source import Source

# Logits that are made at once, whatever the vocabulary: 512 and 24 MiB in float32. Each time the model's
# code around its blocks is gone through once, for which a GPU waits where they are few. On a CPU they are as
# many as malloc keeps for the next time (glibc: 32 MiB); what it gives back to the system comes again page by
# page, which can take longer than the product.
LOGITS_AT_ONCE = {"cuda": 2**27, "cpu": 3 * 2**21}


class Decoder:
    """A causal language model whose blocks stay on meta until they are asked for.

    model: the transformers model; outside its blocks everything is real. prefix: the common name of the
    blocks, such as "model.layers". device, dtype: where and in what the model runs.
    """

    def __init__(self, source: Source, device: torch.device, dtype: torch.dtype) -> None:
        self.source, self.device, self.dtype = source, device, dtype
        self.model = model = skeleton(source, device, dtype)
        self.prefix, self._blocks = find_blocks(model, source)
        require_no_more(model, self.prefix, len(self._blocks), source)
        self._bring = Upload(device) if device.type == "cuda" else Tensor.clone
        if device.type == "cuda":
            fuse_norms(self._blocks, device, dtype)
        place(model, "", read(model, "", source, self._bring, skip=self.prefix))
        tie(model, source)
        require_whole(model, "", source, skip=self.prefix)
        self._shell = Shell(model, self._blocks, device)
        self._ahead = ReadAhead(self._read, device)
        self._arguments: dict[tuple[int, int], list[Arguments]] = {}
        self._attention = quick_attention(device, dtype)
        with self.block(0):
            probe(self._shell, f"{source.path}: {source.config.model_type}")

    @classmethod
    def open(cls, source: Source, device: torch.device, dtype: torch.dtype) -> Decoder:
        """Raises MixllmError for a model without decoder blocks, an encoder, and missing or odd tensors."""
        return cls(source, device, dtype)

    def __len__(self) -> int:
        """The number of blocks."""
        return len(self._blocks)

    @property
    def hidden_size(self) -> int:
        """Features of a hidden state."""
        return int(self.source.config.get_text_config().hidden_size)

    @property
    def vocabulary(self) -> int:
        """Tokens that the model knows."""
        return int(self.source.config.get_text_config().vocab_size)

    @property
    def outside(self) -> int:
        """Parameters outside the blocks, shared ones once."""
        inside = self.prefix + "."
        return sum(p.numel() for n, p in self.model.named_parameters() if not n.startswith(inside))

    def linears(self, i: int) -> dict[str, nn.Linear]:
        """Full module name -> nn.Linear inside block i, in model order; on meta outside block(i)."""
        return linears(self._blocks[i], f"{self.prefix}.{i}", self.source)

    @property
    def weights(self) -> list[int]:
        """Weights of the linear layers of each block."""
        return [sum(linear.weight.numel() for linear in self.linears(i).values()) for i in range(len(self))]

    @contextmanager
    def block(self, i: int, then: int | None = None) -> Iterator[Block]:
        """Block i with its weights on the device; they are dropped when the context ends.

        then: the block that will be asked for next; on a GPU its weights are read while this one works.
        Raises MixllmError for a tensor that is missing, of a wrong shape or dtype, or not finite.
        """
        module, prefix = self._blocks[i], f"{self.prefix}.{i}"
        filled: list[Place] = []
        block = Block(module, prefix, i, self.linears(i), self._arguments, self._attention)
        try:
            read = self._ahead.take(i)
            # Not on a CPU: once a second thread has computed, OpenMP lets the first one's helpers sleep
            # between operations, and rounding, which is many small ones, takes nearly twice as long.
            if then is not None and self.device.type == "cuda":
                self._ahead.start(then)
            filled.extend(place(module, prefix, read))
            del read  # or a weight that is put away before the context ends would stay here
            require_whole(module, prefix, self.source)
            yield block
        finally:
            block.restore()
            unload(filled)

    def walk(self, order: Sequence[int]) -> Generator[tuple[int, Block]]:
        """(i, block i) for every i of the order, each block dropped before the next is given."""
        for i, then in zip(order, [*order[1:], None], strict=True):
            with self.block(i, then) as block:
                yield i, block

    def _read(self, i: int) -> dict[str, Tensor]:
        return read(self._blocks[i], f"{self.prefix}.{i}", self.source, self._bring)

    def embed(self, ids: Tensor) -> Tensor:
        """Token ids int64 [B, L] -> the hidden states [B, L, D] that enter block 0.

        The first time for a shape [B, L], each block's other arguments are kept for Block.__call__.
        """
        shape = (ids.shape[0], ids.shape[1])
        if shape in self._arguments:
            return self._shell.enter(ids, 1)[0]
        hidden, self._arguments[shape] = self._shell.enter(ids, len(self))
        return hidden

    def logits(self, hidden: Tensor, ids: Tensor) -> Tensor:
        """Hidden states after the last block [B, L, D] -> logits [B, L, V], in the model's dtype.

        ids: the int64 [B, L] tokens of these states. Through the model's own norm, head and soft cap.
        """
        return self._shell.logits(hidden, ids)

    def loss_gradient(self, hidden: Tensor, ids: Tensor) -> Tensor:
        """d(summed next-token NLL, in nats) / d(hidden), for hidden [B, L, D] after the last block.

        A token's loss depends on its own states alone, so a few tokens at a time go forward and back: neither
        the logits nor their gradient are ever there for the whole window.
        """
        hidden, ids = hidden.to(self.device), ids.to(self.device)

        def off(part: slice, logits: Tensor) -> Tensor:
            return _nll_gradient(logits, ids[:, part.start + 1 : part.stop + 1])

        return self._gradient(hidden, ids, off)

    def divergence_gradient(self, hidden: Tensor, target: Tensor, ids: Tensor, scale: float = 1.0) -> Tensor:
        """d(scale * mean KL(target || hidden), in nats a predicted token) / d(hidden), float [B, L, D].

        hidden, target: states after the last block, of tokens ids [B, L]; a few tokens at a time, as in
        loss_gradient. By the logits it is softmax(those of hidden) - softmax(those of target); autograd would
        have five tensors of their size at once for it, of which three do.
        """

        def off(part: slice, logits: Tensor) -> Tensor:
            wanted = self.logits(target[:, part], ids[:, part]).softmax(dim=-1, dtype=torch.float32)
            return logits.softmax(dim=-1, dtype=torch.float32).sub_(wanted).to(logits.dtype)

        return self._gradient(hidden, ids, off).div_(len(ids) * (ids.shape[1] - 1) / scale)

    def _gradient(self, hidden: Tensor, ids: Tensor, off: Callable[[slice, Tensor], Tensor]) -> Tensor:
        """d(loss) / d(hidden), [B, L, D]; off: which tokens, their logits -> d(loss) / d(logits)."""
        gradient = torch.zeros_like(hidden)
        for part in self._parts(ids):
            gradient[:, part] = self._part(hidden[:, part].detach(), ids[:, part], partial(off, part))
        return gradient

    def _part(self, hidden: Tensor, ids: Tensor, off: Callable[[Tensor], Tensor]) -> Tensor:
        """A part's gradient. What it takes is gone when it returns, before the next part takes as much."""
        hidden.requires_grad_()
        with torch.enable_grad():
            logits = self.logits(hidden, ids)
        with torch.no_grad():
            found = off(logits.detach())
        return torch.autograd.grad(logits, hidden, found)[0]

    def _parts(self, ids: Tensor) -> Iterator[slice]:
        """The predicted tokens of windows [B, L], a few at a time."""
        step = max(1, LOGITS_AT_ONCE[self.device.type] // (self.vocabulary * len(ids)))
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
