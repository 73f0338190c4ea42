"""The score of output channels: what the loss suffers when a row is stored at fewer bits.

Section 3.1 of arXiv 2412.14590, to second order with the Fisher approximation: for sample d with
loss L_d, row w_c and its rounded w_c^q,

    a_d = <dL_d / dw_c, w_c^q - w_c>        S_c = mean over d of | a_d + a_d^2 / 2 |

No weight gradient is needed, since with e[t, c] = x_t . (w_c^q - w_c), the channel's output error
at token t, and delta[t, c] = dL_d / dy[t, c],

    a_d = sum over t of delta[t, c] e[t, c].

"taylor" is that score. "fisher" keeps tokens apart (token-level Fisher; delta of the summed loss):

    F_c = 1/2 mean over all tokens of (delta[t, c] e[t, c])^2
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mixllm.blocks import Block
from mixllm.config import QuantConfig
from mixllm.experts import owners
from mixllm.plan import ModuleSalience
from mixllm.ranks import Ranks
from mixllm.salience.sums import over_scattered, over_tokens


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
