"""The salience of output channels: what the loss suffers when a row is stored at fewer bits.

Section 3.1 of arXiv 2412.14590, to second order with the Fisher approximation: for sample d with
loss L_d, row w_c and its rounded w_c^q,

    a_d = <dL_d / dw_c, w_c^q - w_c>        S_c = mean over d of | a_d + a_d^2 / 2 |

No weight gradient is needed, since with e[t, c] = x_t . (w_c^q - w_c), the channel's output error
at token t, and delta[t, c] = dL_d / dy[t, c],

    a_d = sum over t of delta[t, c] e[t, c].

"taylor" is that score. "fisher" keeps tokens apart (token-level Fisher; delta of the summed loss):

    F_c = 1/2 mean over all tokens of (delta[t, c] e[t, c])^2

One forward walk, in which the boundary states between blocks are kept (and, for error "gptq", the
candidates rounded), and one backward walk give every channel's score at every candidate width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mixllm.blocks import Block, Decoder
from mixllm.config import WIDTHS, QuantConfig
from mixllm.progress import Progress
from mixllm.rotation import rotate
from mixllm.rounding import factor_of, round_rows
from mixllm.rounding.hessian import Factor, collect
from mixllm.salience_file import ModuleSalience, Salience
from mixllm.scratch import Scratch


def measure_salience(
    decoder: Decoder,
    ids: Tensor,
    config: QuantConfig,
    *,
    work: Path,
    batch: int,
    other_bytes: int = 0,
    progress: Progress,
) -> Salience:
    """Score every output channel of the decoder's linear layers at each width of WIDTHS.

    ids: int64 [samples, L], the calibration windows; batch: windows that go through a block at once.
    work: a directory for the candidates of error "gptq" (about two bytes a weight).
    """
    batches = list(ids.split(batch))
    scratch = Scratch(work)
    states = [[decoder.embed(part).cpu() for part in batches]]
    with progress.stage("salience: forward", len(decoder) * len(batches)) as bar:
        for i in range(len(decoder)):
            with decoder.block(i) as block:
                states.append(_forward(block, states[-1], config, scratch, i, decoder.device, bar.advance))
    grads = [_loss_gradient(decoder, h, part) for h, part in zip(states.pop(), batches, strict=True)]
    found: dict[str, ModuleSalience] = {}
    with progress.stage("salience: backward", len(decoder) * len(batches)) as bar:
        for i in reversed(range(len(decoder))):
            with decoder.block(i) as block:
                scores = Scores(block, _errors(block, config, scratch, i), ids.shape[1])
                for b, h in enumerate(states.pop()):
                    grads[b] = scores.add(h.to(decoder.device), grads[b])
                    bar.advance()
                found = {**scores.result(config, len(ids)), **found}
    return Salience(
        modules=found,
        score=config.score,
        error=config.error,
        tokens=ids.numel(),
        format=config.format,
        other_bytes=other_bytes,
    )


def _forward(
    block: Block,
    hidden: list[Tensor],
    config: QuantConfig,
    scratch: Scratch,
    i: int,
    device: torch.device,
    advance: Any,
) -> list[Tensor]:
    """Run the block; for error "gptq" also round its candidates from the Hessians seen on the way."""
    out = []
    with collect(block.linears if config.error == "gptq" else {}) as shared:
        for h in hidden:
            out.append(block(h.to(device)).cpu())
            advance()
    tensors: dict[str, Tensor] = {}
    for group in shared:
        inputs = factor_of(group.hessian, config, group.names[0])
        for name in group.names:
            # bfloat16 keeps an error to 0.2 %, far finer than the scores' own spread over samples.
            tensors[name] = candidate_errors(block.linears[name].weight, config, inputs).bfloat16().cpu()
    if tensors:
        scratch.put(i, tensors)
    return out


def candidate_errors(weight: Tensor, config: QuantConfig, inputs: Factor | None) -> Tensor:
    """w^q - w of every row at every width: float32 [widths, N, K], in the basis of the layer's own inputs.

    inputs: GPTQ with the config's clip and order, however the model itself is rounded, but no sweeps after
    it, which lower all rows' errors alike; None: round to nearest without clip, the paper's choice.
    """
    n = weight.shape[0]
    how = {"rounding": "rtn", "clip": False} if inputs is None else {"rounding": "gptq", "sweeps": 0}
    config = config.model_copy(update=how)
    bits = torch.tensor(WIDTHS, dtype=torch.uint8, device=weight.device).repeat_interleave(n)
    rounded = round_rows(weight.repeat(len(WIDTHS), 1), bits, config, inputs).dequantize()
    if config.format.rotation == "hadamard":
        rounded = rotate(rounded)
    return rounded.view(len(WIDTHS), n, -1) - weight.float()


def _errors(block: Block, config: QuantConfig, scratch: Scratch, i: int) -> dict[str, Tensor]:
    if config.error == "gptq":
        kept = scratch.take(i)
        return {n: kept[n].to(linear.weight.device, torch.float32) for n, linear in block.linears.items()}
    return {name: candidate_errors(linear.weight, config, None) for name, linear in block.linears.items()}


def _loss_gradient(decoder: Decoder, hidden: Tensor, ids: Tensor) -> Tensor:
    h = hidden.to(decoder.device).requires_grad_()
    with torch.enable_grad():
        loss = decoder.loss(h, ids).sum()
    return torch.autograd.grad(loss, h)[0]


class Scores:
    """Sums a block's scores over batches of calibration windows.

    errors: linear's name -> w^q - w [widths, N, K]; length: tokens a window.
    """

    def __init__(self, block: Block, errors: dict[str, Tensor], length: int) -> None:
        self.block, self.errors, self.length = block, errors, length
        self.taylor = {n: e.new_zeros(e.shape[:2], dtype=torch.float64) for n, e in errors.items()}
        self.fisher = {n: e.new_zeros(e.shape[:2], dtype=torch.float64) for n, e in errors.items()}

    def add(self, hidden: Tensor, gradient: Tensor) -> Tensor:
        """Score one batch: its states before the block [B, L, D] and dLoss / d(states after it).

        Returns dLoss / d(hidden), what the block before needs.
        """
        hidden = hidden.detach().requires_grad_()
        with torch.enable_grad(), _taps(self.block.linears) as taps:
            out = self.block(hidden)
        deltas = torch.autograd.grad(out, [hidden, *(y for _, y in taps.values())], gradient)
        for (name, (x, _)), delta in zip(taps.items(), deltas[1:], strict=True):
            for width, error in enumerate(self.errors[name]):
                a_t = delta.float() * (x @ error.to(x.dtype).T).float()
                a_d = a_t.sum(dim=1)
                self.taylor[name][width] += (a_d + a_d.square() / 2).abs().sum(dim=0)
                # delta of the window's summed loss is (length - 1) times that of its mean.
                self.fisher[name][width] += a_t.mul_(self.length - 1).square().sum(dim=(0, 1))
        return deltas[0]

    def result(self, config: QuantConfig, samples: int) -> dict[str, ModuleSalience]:
        """The mean scores of all batches added, by linear, in nats a token."""
        sums, share = (
            (self.taylor, 1 / samples)
            if config.score == "taylor"
            else (self.fisher, 0.5 / (samples * self.length))
        )
        return {
            name: ModuleSalience(
                in_features=self.errors[name].shape[2],
                loss={width: row.float().cpu() for width, row in zip(WIDTHS, score * share, strict=True)},
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
