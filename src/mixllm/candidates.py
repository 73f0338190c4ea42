"""What each row of a layer would err by at each width: the candidates that a salience is measured of."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from mixllm.config import QuantConfig
from mixllm.format.rounded import rows_at_once
from mixllm.rotation import rotate
from mixllm.rounding import round_rows
from mixllm.rounding.hessian import Factor


def candidates(
    names: Collection[str], linears: Mapping[str, nn.Linear], config: QuantConfig, inputs: Factor | None
) -> dict[str, Tensor]:
    """candidate_errors of some linears by name, those of one K together."""
    found: dict[str, Tensor] = {}
    for k in dict.fromkeys(linears[name].in_features for name in names):
        some = [name for name in names if linears[name].in_features == k]
        found.update(
            zip(some, candidate_errors([linears[n].weight for n in some], config, inputs), strict=True)
        )
    return found


def candidate_errors(weights: Sequence[Tensor], config: QuantConfig, inputs: Factor | None) -> list[Tensor]:
    """w^q - w of every row at every width of the config, of layers w [N, K] that read one input.

    Of each [widths, N, K] in w's dtype, in the basis of that input. Rows of all layers are
    rounded together: what a step costs depends little on how many they are.

    inputs: GPTQ with the config's clip and order, however the model itself is rounded, but no sweeps after
    it, which lower all rows' errors alike; None: round to nearest without clip, the paper's choice.
    """
    how = {"rounding": "rtn", "clip": False} if inputs is None else {"rounding": "gptq", "sweeps": 0}
    config, count = config.model_copy(update=how), len(config.widths)
    errors = [weight.new_empty(count, *weight.shape) for weight in weights]
    size = max(1, rows_at_once(weights[0].shape[1]) // count)
    for parts in _cut([len(weight) for weight in weights], size):
        w = torch.cat([weights[i][rows] for i, rows in parts])
        each = torch.tensor(config.widths, dtype=torch.uint8).repeat_interleave(len(w))
        bits = each.to(w.device, non_blocking=True)
        rounded = round_rows(w.repeat(count, 1), bits, config, inputs).dequantize()
        if config.format.rotation == "hadamard":
            rounded = rotate(rounded)
        made = rounded.view(count, *w.shape) - w.float()
        lengths = [rows.stop - rows.start for _, rows in parts]
        for (i, rows), part in zip(parts, made.split(lengths, dim=1), strict=True):
            errors[i][:, rows] = part
    return errors


def _cut(lengths: Sequence[int], size: int) -> Iterator[list[tuple[int, slice]]]:
    """The rows of several matrices, `size` at a time: (which matrix, which rows)."""
    for start in range(0, sum(lengths), size):
        parts, before = [], 0
        for i, length in enumerate(lengths):
            first, last = max(start - before, 0), min(start + size - before, length)
            if first < last:
                parts.append((i, slice(first, last)))
            before += length
        yield parts
