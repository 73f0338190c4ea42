"""Each row of a layer at each width: the candidates that a salience is measured of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from mixllm.config import Format, QuantConfig
from mixllm.format.rounded import Rounded, join_rows, rows_at_once
from mixllm.rotation import rotate
from mixllm.rounding import round_rows
from mixllm.rounding.hessian import Factor


def candidates(
    weights: Mapping[str, Tensor], config: QuantConfig, inputs: Factor | None
) -> dict[str, Rounded]:
    """Every row of some weights [N, K] at every width of the config.

    Of each weight the rows [widths * N], one width after the other, in the basis of the format.

    Layers of one K read one input, and their rows are rounded together: what a step costs depends little on
    how many they are.
    inputs: GPTQ with the config's clip and order, however the model itself is rounded, but without what
    lowers all rows' errors alike, sweeps and grids by GPTQ's own error; None: round to nearest without
    clip, the paper's choice.
    """
    how = (
        {"rounding": "rtn", "clip": False}
        if inputs is None
        else {"rounding": "gptq", "clip_by": "diagonal", "sweeps": 0}
    )
    config = config.model_copy(update=how)
    found: dict[str, Rounded] = {}
    for k in dict.fromkeys(weight.shape[1] for weight in weights.values()):
        some = {name: weight for name, weight in weights.items() if weight.shape[1] == k}
        found.update(zip(some, _rounded(list(some.values()), config, inputs), strict=True))
    return found


def _rounded(weights: Sequence[Tensor], config: QuantConfig, inputs: Factor | None) -> list[Rounded]:
    found: list[list[list[Rounded]]] = [[[] for _ in config.widths] for _ in weights]
    size = max(1, rows_at_once(weights[0].shape[1]) // len(config.widths))
    for parts in _cut([len(weight) for weight in weights], size):
        w = torch.cat([weights[i][rows] for i, rows in parts])
        each = torch.tensor(config.widths, dtype=torch.uint8).repeat_interleave(len(w))
        bits = each.to(w.device, non_blocking=True)
        rounded = round_rows(w.repeat(len(config.widths), 1), bits, config, inputs)
        start = 0
        for width in range(len(config.widths)):
            for i, rows in parts:
                stop = start + rows.stop - rows.start
                found[i][width].append(rounded.between(start, stop))
                start = stop
    return [join_rows([part for parts in widths for part in parts]) for widths in found]


def candidate_errors(weight: Tensor, rounded: Rounded, format: Format) -> Tensor:
    """w^q - w of candidates of weight [N, K]: [widths, N, K] in its dtype, in the basis of its input."""
    n, size = len(weight), rows_at_once(weight.shape[1])
    errors = weight.new_empty(len(rounded.bits) // n, *weight.shape)
    for width, made in enumerate(errors):
        for start in range(0, n, size):
            part = weight[start : start + size].float()
            values = rounded.between(width * n + start, width * n + start + len(part)).dequantize()
            if format.rotation == "hadamard":
                values = rotate(values)
            made[start : start + size] = values - part
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
