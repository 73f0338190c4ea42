"""The walk that measures salience, forward and back through the model, a block at a time.

One forward walk keeps the boundary states between blocks and rounds the blocks' candidates (for error "gptq",
by the Hessians of their inputs), which wait; a backward walk scores them. Where memory is short, the forward
walk keeps some of the states alone. The backward walk, a stretch of blocks at a time, then takes each block
twice: to make the states after it again and, where they fit in memory, round its candidates, and to score
them. So nothing of a weight's size has to be kept for more than a stretch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice

import torch
from torch import Tensor

from mixllm.blocks import ON_DEVICE, Block, Decoder, Room, States
from mixllm.blocks.feeding import feed
from mixllm.blocks.losses import loss_gradient
from mixllm.blocks.room import stretches_that_fit
from mixllm.config import QuantConfig
from mixllm.fixed import fixed_products
from mixllm.format.rounded import Rounded
from mixllm.memory import trim
from mixllm.plan import Salience
from mixllm.progress import Progress, Stage, stepped
from mixllm.ranks import ALONE, Ranks
from mixllm.rounding.hessian import Shared, collect
from mixllm.salience.block import block_candidates, block_errors
from mixllm.salience.kept import Kept
from mixllm.salience.scores import Scores
from mixllm.salience.waiting import Waiting, waiting_bytes

# The number under which gradients are kept, beside those of boundaries.
GRADIENTS = -1


def measure_salience(
    decoder: Decoder,
    ids: Tensor,
    config: QuantConfig,
    *,
    room: Room = ON_DEVICE,
    batch: int,
    other_bytes: int = 0,
    progress: Progress,
    ranks: Ranks = ALONE,
    kept: Kept | None = None,
) -> Salience:
    """Score every output channel of the decoder's linear layers at each of the config's widths.

    ids: int64 [samples, L], the calibration windows; batch: windows that go through a block at once.
    room: what boundary states may take.
    ranks: the processes that call this together, with the same arguments; all get the same salience.
    kept: where a measurement with the same arguments, that was cut, left what it had scored.
    """
    before = None if kept is None else kept.load()
    todo = len(decoder) if before is None else before[0]
    own = ranks.share(ids)
    batches = list(own.split(batch))
    # The first boundary of each stretch is kept; the others are made again on the way back.
    boundary = own.numel() * decoder.hidden_size * decoder.dtype.itemsize
    beside = max(waiting_bytes(weights, config.widths, config.error) for weights in decoder.weights)
    # All processes go through the same stretches, since they round together.
    cut, leaving = stretches_that_fit(todo, room, boundary, beside, ranks.least)
    back = [i for stretch in reversed(cut) for i in (*stretch[:-1], *reversed(stretch))]
    # Beyond the last stretch's start only the loss wants states, which one that goes on has behind it.
    there = todo if before is None else cut[-1].start
    with (
        kept or nullcontext(),
        States(decoder.device, room) as states,
        closing(decoder.walk([*range(there), *back])) as walk,
    ):
        trim(decoder.device)
        piece = batches[0].numel() * decoder.hidden_size * decoder.dtype.itemsize
        waiting = Waiting(states, config.format, piece)
        none = Salience({}, config.score, config.error, ids.numel(), config.format, other_bytes)
        found = none if before is None else before[1]
        this = _Measurement(
            decoder.device, ids, config, ranks, room.reserved, cut, leaving, states, waiting, found
        )
        states.put(0, (decoder.embed(part) for part in batches), soon=True)
        with progress.stage("salience: forward", there * len(batches), blocks=there) as bar:
            this.forward(islice(walk, there), bar)
        if before is None:
            with progress.stage("salience: loss", len(batches)) as bar:
                # Of the summed loss: of a size that any dtype holds.
                grads = map(partial(loss_gradient, decoder), states.take(todo), batches)
                states.put(GRADIENTS, stepped(grads, bar), soon=True)
        else:
            states.put(GRADIENTS, (part.to(decoder.device) for part in before[2].split(batch)), soon=True)
        with progress.stage("salience: backward", len(back) * len(batches), blocks=todo) as bar:
            this.backward(walk, kept, bar)
    return this.found


@dataclass
class _Measurement:
    """A measurement on its way: what it is of, what waits, and the scores found so far.

    reserved: see Room. cut, leaving: the stretches, and how many blocks may leave candidates at once (see
    stretches_that_fit).
    """

    device: torch.device
    ids: Tensor
    config: QuantConfig
    ranks: Ranks
    reserved: int
    cut: list[range]
    leaving: int
    states: States
    waiting: Waiting
    found: Salience

    @property
    def todo(self) -> int:
        """Blocks that are to be scored."""
        return self.cut[-1].stop

    def forward(self, walk: Iterable[tuple[int, Block]], bar: Stage) -> None:
        """The walk there: states that enter stretches stay; candidates too, where there is room for all."""
        starts = {stretch.start for stretch in self.cut}
        for i, block in walk:
            if self.leaving == self.todo:
                self._leave(i, block, bar)
            else:
                hidden = self.states.read(i) if i in starts else self.states.take(i)
                self.states.put(i + 1, stepped(map(block, hidden), bar), soon=i + 1 not in starts)

    def backward(self, walk: Iterator[tuple[int, Block]], kept: Kept | None, bar: Stage) -> None:
        """The way back, from the gradients of what left the last block: every block is scored."""
        for stretch in reversed(self.cut):
            for i, block in islice(walk, len(stretch) - 1):
                self._leave(i, block, bar)
            for i, block in islice(walk, len(stretch)):
                self._score(i, block, bar)
                if kept is not None and i:
                    kept.save(i, self.found, self.states.read(GRADIENTS))

    def _leave(self, i: int, block: Block, bar: Stage) -> None:
        """Make the states after block i and, where they may wait, its candidates."""
        early = self.leaving > 0 and self.config.error == "gptq"
        trim(self.device, self.reserved)
        with collect(block.linears if early else {}) as shared:
            states = stepped(map(block, self.states.read(i)), bar)
            self.states.put(i + 1, states, soon=i + 1 == self.todo)
        if early:
            self.waiting.put(i, self._rounded(block, shared))

    def _score(self, i: int, block: Block, bar: Stage) -> None:
        """Score block i, and make of the gradients of what left it those of what entered it."""
        made = self.waiting.take(i) if i in self.waiting else self._made_now(i, block)
        trim(self.device, self.reserved)
        scores = Scores(block, block_errors(block, made, self.config), self.ids.shape[1])
        grads = map(scores.add, self.states.take(i), self.states.take(GRADIENTS))
        with fixed_products(block.linears):
            self.states.put(GRADIENTS, stepped(grads, bar), soon=True)
        modules = {**scores.result(self.config, len(self.ids), self.ranks), **self.found.modules}
        self.found = replace(self.found, modules=modules)

    def _made_now(self, i: int, block: Block) -> dict[str, Rounded]:
        """Candidates that did not wait: the block goes through its states once more for their Hessians."""
        with collect(block.linears) as shared:
            feed(block, self.states.read(i) if self.config.error == "gptq" else ())
        return self._rounded(block, shared)

    def _rounded(self, block: Block, shared: list[Shared]) -> dict[str, Rounded]:
        return block_candidates(block, shared, self.config, self.ids.numel(), self.ranks, self.reserved)
