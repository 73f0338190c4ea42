"""The rounding walk: block by block, each calibrated on the outputs of the quantized blocks before it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from torch import Tensor

from mixllm.blocks import Block, Decoder, Room, States
from mixllm.config import QuantConfig
from mixllm.format.rounded import Rounded
from mixllm.nn import MixLinear
from mixllm.progress import Progress, stepped
from mixllm.ranks import ALONE, Ranks
from mixllm.rounding import needs_hessian, round_rows
from mixllm.rounding.divided import divided
from mixllm.rounding.few import factor_if_seen, warning
from mixllm.rounding.hessian import Shared, collect
from mixllm.rounding.observed import Observed, observed, seen_by_all, watch


def round_model(
    decoder: Decoder,
    ids: Tensor,
    widths: Mapping[str, Tensor],
    config: QuantConfig,
    *,
    work: Path,
    room: Room,
    batch: int,
    progress: Progress,
    seen: dict[str, Observed] | None = None,
    ranks: Ranks = ALONE,
) -> Iterator[tuple[str, Rounded]]:
    """Round every linear of the decoder; yields (full name, Rounded) in model order.

    ids: int64 [samples, L], calibration windows; widths: uint8 [N] by linear. With a Hessian to be
    had, block i + 1 is fed by the quantized block i, with int8 activations, as at run time.
    room: what boundary states may take in memory; work: a directory for those that fit none.
    seen: filled, where given and there is a Hessian, with what was observed of each linear.
    An expert that saw too few tokens is rounded to nearest; one note to `progress` counts those.
    """
    calibrated = needs_hessian(config)
    batches = list(ranks.share(ids).split(batch)) if calibrated else []
    total = ids.numel() if calibrated else 0
    n = len(decoder)
    few: list[str] = []
    with (
        progress.stage("round", n * max(1, len(batches))) as bar,
        States(decoder.device, work, room) as states,
        closing(decoder.walk(range(n))) as walk,
    ):
        states.put(0, (decoder.embed(part) for part in batches), soon=True)
        for i, block in walk:
            done = _round_block(block, states.read(i), widths, config, total, seen, few, ranks)
            yield from done.items()
            if not calibrated:
                bar.advance()
            for name, rounded in done.items():
                linear = block.linears[name]
                block.replace(name, MixLinear.from_rounded(rounded, config.format, linear.bias))
            hidden = states.take(i)
            states.put(i + 1, stepped(map(block, hidden) if i + 1 < n else hidden, bar), soon=True)
    if few:
        progress.note(warning(few))


# What was observed of layers, and the names of those whose Hessian saw too few tokens.
_Notes = tuple[dict[str, Observed], list[str]]


def _round_block(
    block: Block,
    states: Iterable[Tensor],
    widths: Mapping[str, Tensor],
    config: QuantConfig,
    total: int,
    seen: dict[str, Observed] | None,
    few: list[str],
    ranks: Ranks,
) -> dict[str, Rounded]:
    """The block's linears rounded, in model order, by the Hessians that its states give.

    total: tokens of all states of all ranks; few: gets the names of linears that saw too few of them.
    """
    linears = block.linears
    nearest = config.model_copy(update={"rounding": "rtn"}) if total else config
    with collect(linears) as found, watch(linears) as inputs:
        for hidden in states:
            block(hidden)
    inputs = seen_by_all(linears, inputs, ranks)

    def make(group: Shared) -> tuple[dict[tuple[str, str], Tensor], _Notes]:
        factor = factor_if_seen(group, config, total)
        how = nearest if factor is None else config
        fields: dict[tuple[str, str], Tensor] = {}
        notes: dict[str, Observed] = {}
        for name in group.names:
            weight = linears[name].weight
            rounded = round_rows(weight, widths[name].to(weight.device), how, factor)
            fields.update({(name, f): t for f, t in vars(rounded).items() if t is not None})
            if seen is not None:
                rotated = config.format.rotation == "hadamard"
                notes[name] = observed(weight, rounded, group.hessian, inputs[name], rotated=rotated)
        return fields, (notes, [] if factor is not None else group.names)

    fields, notes = divided(found, linears, ranks, make)
    done: dict[str, Rounded] = {}
    for name, linear in linears.items():
        own: dict[str, Any] = {field: tensor for (layer, field), tensor in fields.items() if layer == name}
        bits = widths[name].to(linear.weight.device)
        done[name] = Rounded(**own) if own else round_rows(linear.weight, bits, nearest, None)
        if total and not own:
            few.append(name)
    for observations, names in notes:
        few.extend(names)
        if seen is not None:
            seen.update(observations)
    return done
