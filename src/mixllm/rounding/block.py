"""A block's linears, rounded by what all processes collected of their inputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from mixllm.blocks import Block
from mixllm.blocks.feeding import feed
from mixllm.config import QuantConfig
from mixllm.format.rounded import Rounded
from mixllm.ranks import Ranks
from mixllm.rounding import round_rows
from mixllm.rounding.divided import divided
from mixllm.rounding.few import factor_if_seen
from mixllm.rounding.hessian import Factor, collect
from mixllm.rounding.observed import Observed, energies, observed, seen_by_all, watch

# Beside the fields of Rounded, float64 [parts, 2]: what `energies` gave of each part of a layer.
ENERGY = "energy"
# By layer and field.
Fields = dict[tuple[str, str], Tensor]


@dataclass(frozen=True)
class BlockRounding:
    """Rounds a block's linears by the Hessians that its states give.

    widths: where the weights are. seen, ranks: see mixllm.rounding.walk.round_model. total: tokens of all
    states of all ranks, 0 where nothing is calibrated. few: gets the names of linears that saw too few of
    them. reserved: see Room.
    """

    config: QuantConfig
    widths: Mapping[str, Tensor]
    total: int
    seen: dict[str, Observed] | None
    few: list[str]
    ranks: Ranks
    reserved: int

    def __call__(self, block: Block, states: Iterable[Tensor]) -> dict[str, Rounded]:
        """The block's linears rounded, in model order."""
        linears = block.linears
        with collect(linears) as found, watch(linears) as inputs:
            feed(block, states)
        inputs = seen_by_all(linears, inputs, self.ranks)
        factor = partial(factor_if_seen, config=self.config, total=self.total, reserved=self.reserved)
        fields, notes = divided(found, linears, self.ranks, factor, partial(self._some, linears), dim=0)
        unseen = set(chain.from_iterable(notes))
        self.few.extend(name for name in linears if name in unseen)
        done: dict[str, Rounded] = {}
        for name, linear in linears.items():
            own: dict[str, Any] = {f: tensor for (layer, f), tensor in fields.items() if layer == name}
            energy = own.pop(ENERGY, None)
            if self.seen is not None and energy is not None:
                self.seen[name] = observed(energy.sum(dim=0), inputs[name])
            if self.total and not own:
                self.few.append(name)
            done[name] = Rounded(**own) if own else self._to_nearest(name, linear)
        return done

    def _some(
        self,
        linears: Mapping[str, nn.Linear],
        names: list[str],
        factor: Factor | None,
        rows: Mapping[str, slice],
    ) -> tuple[Fields, list[str]]:
        """Rows of layers with one input, rounded, and the names of those that saw too few tokens."""
        how = self._nearest if factor is None else self.config
        weights = [linears[name].weight[rows[name]] for name in names]
        bits = torch.cat([self.widths[name][rows[name]] for name in names])
        # Together: what a step costs depends little on how many rows they are.
        together = round_rows(torch.cat(weights), bits, how, factor)
        fields: Fields = {}
        start = 0
        for name, weight in zip(names, weights, strict=True):
            rounded = together.between(start, start + len(weight))
            start += len(weight)
            fields.update({(name, f): t for f, t in vars(rounded).items() if t is not None})
            if self.seen is not None and factor is not None:
                rotated = self.config.format.rotation == "hadamard"
                energy = energies(weight, rounded, factor.hessian, rotated=rotated)
                fields[name, ENERGY] = energy[None]
        return fields, names if factor is None else []

    def _to_nearest(self, name: str, linear: nn.Linear) -> Rounded:
        """A layer that no token reached, or one of a walk that calibrates nothing."""
        return round_rows(linear.weight, self.widths[name], self._nearest, None)

    @property
    def _nearest(self) -> QuantConfig:
        return self.config.model_copy(update={"rounding": "rtn"}) if self.total else self.config
