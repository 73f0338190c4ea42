"""The rounding walk: block by block, each calibrated on the outputs of the quantized blocks before it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from pathlib import Path

from torch import Tensor

from mixllm.blocks import Block, Decoder, Room, States
from mixllm.config import QuantConfig
from mixllm.format.rounded import Rounded
from mixllm.nn import MixLinear
from mixllm.progress import Progress, stepped
from mixllm.rounding import factor_of, needs_hessian, round_rows
from mixllm.rounding.hessian import collect
from mixllm.rounding.observed import Observed, observed, watch


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
) -> Iterator[tuple[str, Rounded]]:
    """Round every linear of the decoder; yields (full name, Rounded) in model order.

    ids: int64 [samples, L], calibration windows; widths: uint8 [N] by linear. With a Hessian to be
    had, block i + 1 is fed by the quantized block i, with int8 activations, as at run time.
    room: what boundary states may take in memory; work: a directory for those that fit none.
    seen: filled, where given and there is a Hessian, with what was observed of each linear.
    """
    calibrated = needs_hessian(config)
    batches = list(ids.split(batch)) if calibrated else []
    n = len(decoder)
    with (
        progress.stage("round", n * max(1, len(batches))) as bar,
        States(decoder.device, work, room) as states,
        closing(decoder.walk(range(n))) as walk,
    ):
        states.put(0, (decoder.embed(part) for part in batches), soon=True)
        for i, block in walk:
            done = _round_block(block, states.read(i), widths, config, seen)
            yield from done.items()
            if not calibrated:
                bar.advance()
            for name, rounded in done.items():
                linear = block.linears[name]
                block.replace(name, MixLinear.from_rounded(rounded, config.format, linear.bias))
            hidden = states.take(i)
            states.put(i + 1, stepped(map(block, hidden) if i + 1 < n else hidden, bar), soon=True)


def _round_block(
    block: Block,
    states: Iterable[Tensor],
    widths: Mapping[str, Tensor],
    config: QuantConfig,
    seen: dict[str, Observed] | None,
) -> dict[str, Rounded]:
    """The block's linears rounded, in model order, by the Hessians that its states give."""
    linears = block.linears
    with collect(linears) as found, watch(linears) as inputs:
        for hidden in states:
            block(hidden)
    done: dict[str, Rounded] = {}
    while found:
        shared = found.pop()
        factor = factor_of(shared.hessian, config, shared.names[0])
        for name in shared.names:
            weight = linears[name].weight
            done[name] = round_rows(weight, widths[name].to(weight.device), config, factor)
            if seen is not None:
                rotated = config.format.rotation == "hadamard"
                seen[name] = observed(weight, done[name], shared.hessian, inputs[name], rotated=rotated)
    for name in linears.keys() - done.keys():
        weight = linears[name].weight
        done[name] = round_rows(weight, widths[name].to(weight.device), config, None)
    return {name: done[name] for name in linears}
