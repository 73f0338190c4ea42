"""The salience of output channels: what the loss suffers when a row is stored at fewer bits.

Section 3.1 of arXiv 2412.14590, to second order with the Fisher approximation: for sample d with
loss L_d, row w_c and its rounded w_c^q,

    a_d = <dL_d / dw_c, w_c^q - w_c>        S_c = mean over d of | a_d + a_d^2 / 2 |

No weight gradient is needed, since with e[t, c] = x_t . (w_c^q - w_c), the channel's output error
at token t, and delta[t, c] = dL_d / dy[t, c],

    a_d = sum over t of delta[t, c] e[t, c].

"taylor" is that score. "fisher" keeps tokens apart (token-level Fisher; delta of the summed loss):

    F_c = 1/2 mean over all tokens of (delta[t, c] e[t, c])^2

One forward walk keeps the boundary states between blocks. A backward walk then takes each block twice: to
round its candidates (for error "gptq", by the Hessians of its inputs) and to score them. So nothing of a
weight's size has to be kept between the walks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from mixllm.blocks import ON_DEVICE, Block, Decoder, Room, States
from mixllm.blocks.states import stretches
from mixllm.candidates import candidates
from mixllm.config import QuantConfig
from mixllm.experts import owners
from mixllm.progress import Progress, Stage, stepped
from mixllm.ranks import ALONE, Ranks
from mixllm.rounding.divided import divided
from mixllm.rounding.few import factor_if_seen
from mixllm.rounding.hessian import Shared, collect
from mixllm.salience_file import ModuleSalience, Salience
from mixllm.salience_kept import Kept
from mixllm.scores import over_scattered, over_tokens

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
    cut = stretches(todo, room.boundaries(own.numel() * decoder.hidden_size * decoder.dtype.itemsize))
    starts = {stretch.start for stretch in cut}
    back = [i for stretch in reversed(cut) for i in (*stretch[:-1], *reversed(stretch))]
    # Beyond the last stretch's start only the loss wants states, which one that goes on has behind it.
    there = todo if before is None else cut[-1].start
    with States(decoder.device, room) as states, closing(decoder.walk([*range(there), *back])) as walk:
        states.put(0, (decoder.embed(part) for part in batches), soon=True)
        with progress.stage("salience: forward", there * len(batches), blocks=there) as bar:
            for i, block in islice(walk, there):
                hidden = states.read(i) if i in starts else states.take(i)
                states.put(i + 1, stepped(map(block, hidden), bar), soon=i + 1 not in starts)
        if before is None:
            with progress.stage("salience: loss", len(batches)) as bar:
                grads = map(partial(_loss_gradient, decoder), states.take(todo), batches)
                states.put(GRADIENTS, stepped(grads, bar), soon=True)
        else:
            states.put(GRADIENTS, (part.to(decoder.device) for part in before[2].split(batch)), soon=True)
        with progress.stage("salience: backward", len(back) * len(batches), blocks=todo) as bar:
            for stretch in reversed(cut):
                for i, block in islice(walk, len(stretch) - 1):
                    states.put(i + 1, stepped(map(block, states.read(i)), bar), soon=False)
                for i, block in islice(walk, len(stretch)):
                    scored = _scored(block, i, states, bar, config, len(ids), ids.shape[1], ranks)
                    found = {**scored, **found}
                    if kept is not None and i:
                        kept.save(i, salience(), states.read(GRADIENTS))
    return salience()


def _scored(
    block: Block,
    i: int,
    states: States,
    bar: Stage,
    config: QuantConfig,
    samples: int,
    length: int,
    ranks: Ranks,
) -> dict[str, ModuleSalience]:
    """The salience of block i; its states are taken, and the gradient becomes theirs."""
    errors = _errors(block, states.read(i), config, samples * length, ranks)
    scores = Scores(block, errors, length)
    grads = map(scores.add, states.take(i), states.take(GRADIENTS))
    states.put(GRADIENTS, stepped(grads, bar), soon=True)
    return scores.result(config, samples, ranks)


def _errors(
    block: Block, states: Iterable[Tensor], config: QuantConfig, total: int, ranks: Ranks
) -> dict[str, Tensor]:
    """candidate errors of the block's linears; for error "gptq" from the Hessians that its states give, but
    for experts that saw too few of all `total` tokens."""
    if config.error == "rtn":
        return candidates(block.linears, block.linears, config, None)
    with collect(block.linears) as shared:
        for h in states:
            block(h)

    def make(group: Shared) -> tuple[dict[str, Tensor], None]:
        inputs = factor_if_seen(group, config, total)
        return candidates(group.names, block.linears, config, inputs), None

    errors = divided(shared, block.linears, ranks, make)[0]
    # No token reached the experts that are missing.
    errors.update(
        candidates([name for name in block.linears if name not in errors], block.linears, config, None)
    )
    return {name: errors[name] for name in block.linears}


def _loss_gradient(decoder: Decoder, hidden: Tensor, ids: Tensor) -> Tensor:
    """d(summed loss of each window) / d(states after the last block): of a size that any dtype holds."""
    h = hidden.to(decoder.device).requires_grad_()
    with torch.enable_grad():
        loss = decoder.loss(h, ids).sum() * (ids.shape[1] - 1)
    return torch.autograd.grad(loss, h)[0]


class Scores:
    """Sums a block's scores over batches of calibration windows.

    errors: linear's name -> w^q - w [widths, N, K] in the weight's dtype; length: tokens a window.
    """

    def __init__(self, block: Block, errors: dict[str, Tensor], length: int) -> None:
        self.block, self.errors, self.length = block, errors, length
        self.experts = owners(block.linears, block.module)
        self.taylor = {n: e.new_zeros(e.shape[:2], dtype=torch.float64) for n, e in errors.items()}
        self.fisher = {n: e.new_zeros(e.shape[:2], dtype=torch.float64) for n, e in errors.items()}

    def add(self, hidden: Tensor, gradient: Tensor) -> Tensor:
        """Score one batch: its states before the block [B, L, D] and d(summed loss) / d(states after it).

        Returns d(summed loss) / d(hidden), what the block before needs.
        """
        hidden = hidden.detach().requires_grad_()
        with torch.enable_grad(), _taps(self.block.linears) as taps:
            out = self.block(hidden)
        deltas = torch.autograd.grad(out, [hidden, *(y for _, y in taps.values())], gradient)
        for (name, (x, _)), delta in zip(taps.items(), deltas[1:], strict=True):
            self._add(name, x, delta, len(hidden))
        return deltas[0]

    def _add(self, name: str, x: Tensor, delta: Tensor, windows: int) -> None:
        """Score a layer by its inputs x and delta, dLoss / d(its outputs), of so many windows."""
        e = x @ self.errors[name].flatten(0, 1).T
        if delta.dim() > 3:  # such as heads' tokens, [B, H, L, N]
            delta, e = delta.flatten(1, -2), e.flatten(1, -2)
        if delta.dim() == 3:
            sums, squares = over_tokens(delta, e)
        else:
            sums, squares = over_scattered(delta, e, self._windows(name, delta), windows)
        # The mean's gradient is the sum's over the number of predicted tokens.
        a_d = sums.double() / (self.length - 1)
        self.taylor[name] += (a_d + a_d.square() / 2).abs().sum(dim=0)
        self.fisher[name] += squares.sum(dim=0, dtype=torch.float64)

    def _windows(self, name: str, delta: Tensor) -> Tensor:
        """The window of each token of delta [T, N]: an expert has some tokens, other layers all, in order."""
        all_tokens = torch.arange(len(delta), device=delta.device)
        tokens = self.experts[name].tokens if name in self.experts else all_tokens
        return tokens // self.length

    def result(self, config: QuantConfig, samples: int, ranks: Ranks) -> dict[str, ModuleSalience]:
        """The mean scores of all batches that all ranks have added, by linear, in nats a token."""
        sums, share = (
            (self.taylor, 1 / samples)
            if config.score == "taylor"
            else (self.fisher, 0.5 / (samples * self.length))
        )
        ranks.add(*sums.values())
        return {
            name: ModuleSalience(
                in_features=self.errors[name].shape[2],
                loss={
                    width: row.float().cpu() for width, row in zip(config.widths, score * share, strict=True)
                },
            )
            for name, score in sums.items()
        }


@contextmanager
def _taps(linears: dict[str, nn.Linear]) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    """Catch each linear's input (detached) and output (in the graph)."""
    taps: dict[str, tuple[Tensor, Tensor]] = {}

    def hook(name: str) -> Any:
        def catch(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            taps[name] = inputs[0].detach(), output

        return catch

    handles = [linear.register_forward_hook(hook(name)) for name, linear in linears.items()]
    try:
        yield taps
    finally:
        for handle in handles:
            handle.remove()
