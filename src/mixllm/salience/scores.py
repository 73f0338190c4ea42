"""The score of output channels: what the loss suffers when a row is stored at fewer bits.

Section 3.1 of arXiv 2412.14590, to second order with the Fisher approximation: for sample d with
loss L_d, row w_c and its rounded w_c^q,

    a_d = <dL_d / dw_c, w_c^q - w_c>        S_c = mean over d of | a_d + a_d^2 / 2 |

No weight gradient is needed, since with e[t, c] = x_t . (w_c^q - w_c), the channel's output error
at token t, and delta[t, c] = dL_d / dy[t, c],

    a_d = sum over t of delta[t, c] e[t, c].

"taylor" is that score. "fisher" keeps tokens apart (token-level Fisher; delta of the summed loss):

    F_c = 1/2 mean over all tokens of (delta[t, c] e[t, c])^2

Where a block uses a layer more than once, a_d sums over all uses, and F_c takes each use's tokens apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from mixllm.blocks import Block
from mixllm.config import QuantConfig
from mixllm.experts import Expert, owners
from mixllm.plan import ModuleSalience
from mixllm.ranks import Ranks
from mixllm.salience.errors import Errors
from mixllm.salience.sums import over_scattered


class Scores:
    """Sums a block's scores over batches of calibration windows.

    errors: by linear's name; length: tokens a window.
    """

    def __init__(self, block: Block, errors: dict[str, Errors], length: int) -> None:
        self.block, self.errors, self.length = block, errors, length
        self.experts = owners(block.linears, block.module)
        self.taylor, self.fisher = ({n: self._zeros(n) for n in errors} for _ in range(2))

    def _zeros(self, name: str) -> Tensor:
        device = self.block.linears[name].weight.device
        return torch.zeros(self.errors[name].shape[:2], dtype=torch.float64, device=device)

    def add(self, hidden: Tensor, gradient: Tensor) -> Tensor:
        """Score one batch: its states before the block [B, L, D] and d(summed loss) / d(states after it).

        Returns d(summed loss) / d(hidden), what the block before needs.
        """
        hidden = hidden.detach().requires_grad_()
        with torch.enable_grad(), _taps(self.block.linears, self.experts) as taps:
            out = self.block(hidden)
        uses = [use for some in taps.values() for use in some]
        gradient, *deltas = torch.autograd.grad(out, [hidden, *(use.y for use in uses)], gradient)
        left = iter(deltas)
        for name, some in taps.items():
            self._add(name, list(zip(some, islice(left, len(some)), strict=True)), len(hidden))
        return gradient

    def _add(self, name: str, uses: list[tuple[_Use, Tensor]], windows: int) -> None:
        """Score a layer by its uses, each with delta, dLoss / d(its outputs), in so many windows."""
        parts = [self._sums(name, use, delta, windows) for use, delta in uses]
        sums = torch.stack([part for part, _ in parts]).sum(dim=0)
        # The mean's gradient is the sum's over the number of predicted tokens.
        a_d = sums.double() / (self.length - 1)
        self.taylor[name] += (a_d + a_d.square() / 2).abs().sum(dim=0)
        for _, squares in parts:
            self.fisher[name] += squares.sum(dim=0, dtype=torch.float64)

    def _sums(self, name: str, use: _Use, delta: Tensor, windows: int) -> tuple[Tensor, Tensor]:
        """Of delta e and (delta e)^2 over the tokens of each window: float32 [windows, widths, N]."""
        errors, x = self.errors[name], use.x
        if delta.dim() > 3:  # such as heads' tokens, [B, H, L, N]
            delta, x = delta.flatten(1, -2), x.flatten(1, -2)
        if delta.dim() == 3:
            return errors.over_tokens(delta, x)
        tokens = torch.arange(len(delta), device=delta.device) if use.tokens is None else use.tokens
        return over_scattered(delta, errors.of(x), tokens // self.length, windows)

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


@dataclass
class _Use:
    """Of a layer, once: its input, detached, its output, in the graph, and, of an expert, its tokens' numbers
    among those of all windows, int64 [T]; other layers have all, in order."""

    x: Tensor
    y: Tensor
    tokens: Tensor | None


@contextmanager
def _taps(linears: dict[str, nn.Linear], experts: dict[str, Expert]) -> Iterator[dict[str, list[_Use]]]:
    """Catch every use of the linears."""
    taps: dict[str, list[_Use]] = {}

    def hook(name: str) -> Any:
        def catch(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            tokens = experts[name].tokens if name in experts else None
            taps.setdefault(name, []).append(_Use(inputs[0].detach(), output, tokens))

        return catch

    handles = [linear.register_forward_hook(hook(name)) for name, linear in linears.items()]
    try:
        yield taps
    finally:
        for handle in handles:
            handle.remove()
