"""Any Hugging Face decoder, one block at a time, through the model's own code."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager

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
            self._ahead.settle()
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
