"""The walk that measures salience, forward and back through the model, a block at a time.

One forward walk keeps the boundary states between blocks and rounds the blocks' candidates (for error "gptq",
by the Hessians of their inputs), which wait; a backward walk scores them. Where memory is short, the forward
walk keeps some of the states alone. The backward walk, a stretch of blocks at a time, then takes each block
twice: to make the states after it again and, where they fit in memory, round its candidates, and to score
them. So nothing of a weight's size has to be kept for more than a stretch.
"""

from __future__ import annotations

from collections import deque
from contextlib import closing, nullcontext
from functools import partial
from itertools import islice
from typing import Any

from torch import Tensor

from mixllm.blocks import ON_DEVICE, Block, Decoder, Room, States
from mixllm.blocks.losses import loss_gradient
from mixllm.blocks.room import stretches_that_fit
from mixllm.config import QuantConfig
from mixllm.format.rounded import Rounded
from mixllm.memory import trim
from mixllm.plan import ModuleSalience, Salience
from mixllm.progress import Progress, Stage, stepped
from mixllm.ranks import ALONE, Ranks
from mixllm.rounding.divided import divided
from mixllm.rounding.few import factor_if_seen
from mixllm.rounding.hessian import Factor, Shared, collect
from mixllm.salience.candidates import candidate_errors, candidates
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

    def salience() -> Salience:
        return Salience(found, config.score, config.error, ids.numel(), config.format, other_bytes)

    before = None if kept is None else kept.load()
    todo = len(decoder) if before is None else before[0]
    found: dict[str, ModuleSalience] = {} if before is None else before[1].modules
    own = ranks.share(ids)
    batches = list(own.split(batch))
    # The first boundary of each stretch is kept; the others are made again on the way back.
    boundary = own.numel() * decoder.hidden_size * decoder.dtype.itemsize
    beside = max(waiting_bytes(weights, config.widths, config.error) for weights in decoder.weights)
    # All processes go through the same stretches, since they round together.
    cut, leaving = stretches_that_fit(todo, room, boundary, beside, ranks.least)
    early = leaving > 0 and config.error == "gptq"
    starts = {stretch.start for stretch in cut}
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

        def rounded(block: Block, shared: list[Shared]) -> dict[str, Rounded]:
            return _candidates(block, shared, config, ids.numel(), ranks, room.reserved)

        def leave(i: int, block: Block, bar: Stage) -> None:
            """Make the states after block i and, early, its candidates, which wait."""
            trim(decoder.device, room.reserved)
            with collect(block.linears if early else {}) as shared:
                states.put(i + 1, stepped(map(block, states.read(i)), bar), soon=i + 1 == todo)
            if early:
                waiting.put(i, rounded(block, shared))

        states.put(0, (decoder.embed(part) for part in batches), soon=True)
        with progress.stage("salience: forward", there * len(batches), blocks=there) as bar:
            for i, block in islice(walk, there):
                if leaving == todo:
                    leave(i, block, bar)
                else:
                    hidden = states.read(i) if i in starts else states.take(i)
                    states.put(i + 1, stepped(map(block, hidden), bar), soon=i + 1 not in starts)
        if before is None:
            with progress.stage("salience: loss", len(batches)) as bar:
                # Of the summed loss: of a size that any dtype holds.
                grads = map(partial(loss_gradient, decoder), states.take(todo), batches)
                states.put(GRADIENTS, stepped(grads, bar), soon=True)
        else:
            states.put(GRADIENTS, (part.to(decoder.device) for part in before[2].split(batch)), soon=True)
        with progress.stage("salience: backward", len(back) * len(batches), blocks=todo) as bar:
            for stretch in reversed(cut):
                for i, block in islice(walk, len(stretch) - 1):
                    leave(i, block, bar)
                for i, block in islice(walk, len(stretch)):
                    if i in waiting:
                        made = waiting.take(i)
                    else:
                        with collect(block.linears) as shared:
                            deque(map(block, states.read(i) if config.error == "gptq" else ()), maxlen=0)
                        made = rounded(block, shared)
                    trim(decoder.device, room.reserved)
                    scores = Scores(block, _errors(block, made, config), ids.shape[1])
                    grads = map(scores.add, states.take(i), states.take(GRADIENTS))
                    states.put(GRADIENTS, stepped(grads, bar), soon=True)
                    found = {**scores.result(config, len(ids), ranks), **found}
                    del scores, grads
                    if kept is not None and i:
                        kept.save(i, salience(), states.read(GRADIENTS))
    return salience()


def _candidates(
    block: Block, shared: list[Shared], config: QuantConfig, total: int, ranks: Ranks, reserved: int
) -> dict[str, Rounded]:
    """Candidates of the block's linears by the Hessians that all processes collected, but for experts that
    saw too few of all `total` tokens; those of all linears rounded to nearest where nothing was collected."""
    weights = {name: linear.weight for name, linear in block.linears.items()}

    def make(
        names: list[str], inputs: Factor | None, rows: dict[str, slice]
    ) -> tuple[dict[tuple[str, str], Tensor], None]:
        made = candidates({name: weights[name][rows[name]] for name in names}, config, inputs)
        fields = {(n, f): t for n, rounded in made.items() for f, t in vars(rounded).items() if t is not None}
        return {key: tensor.unflatten(0, (len(config.widths), -1)) for key, tensor in fields.items()}, None

    found: dict[str, dict[str, Any]] = {}
    if config.error == "gptq":
        factor = partial(factor_if_seen, config=config, total=total, reserved=reserved)
        for (name, field), tensor in divided(shared, block.linears, ranks, factor, make, dim=1)[0].items():
            found.setdefault(name, {})[field] = tensor.flatten(0, 1)
    # No token reached the experts that are missing.
    rest = candidates({n: weight for n, weight in weights.items() if n not in found}, config, None)
    return {name: Rounded(**found[name]) if name in found else rest[name] for name in weights}


def _errors(block: Block, made: dict[str, Rounded], config: QuantConfig) -> dict[str, Tensor]:
    """candidate_errors of the block's linears; the candidates go as their errors come."""
    return {
        name: candidate_errors(linear.weight, made.pop(name), config.format)
        for name, linear in block.linears.items()
    }
