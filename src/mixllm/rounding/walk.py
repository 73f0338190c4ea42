"""The rounding walk: block by block, each calibrated on the outputs of the quantized blocks before it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from functools import partial
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor

from mixllm.blocks import ON_DEVICE, Block, Decoder, Room, States
from mixllm.config import QuantConfig
from mixllm.format.mixed import MixedWeight
from mixllm.format.pack import pack
from mixllm.format.rounded import Rounded
from mixllm.format.spool import Spool
from mixllm.memory import trim
from mixllm.nn import MixLinear
from mixllm.progress import Progress, stepped
from mixllm.ranks import ALONE, Ranks
from mixllm.rounding import needs_hessian, round_rows
from mixllm.rounding.divided import divided
from mixllm.rounding.few import factor_if_seen, warning
from mixllm.rounding.hessian import Factor, collect
from mixllm.rounding.observed import Observed, energies, observed, seen_by_all, watch


def round_model(
    decoder: Decoder,
    ids: Tensor,
    widths: Mapping[str, Tensor],
    config: QuantConfig,
    *,
    room: Room = ON_DEVICE,
    batch: int,
    progress: Progress,
    seen: dict[str, Observed] | None = None,
    ranks: Ranks = ALONE,
    finished: Spool | None = None,
) -> Iterator[tuple[str, MixedWeight]]:
    """Round every linear of the decoder; yields (full name, packed layer) in model order, block by block.

    ids: int64 [samples, L], calibration windows; widths: uint8 [N] by linear. With a Hessian to be
    had, block i + 1 is fed by the quantized block i, with int8 activations, as at run time.
    room: what boundary states may take.
    seen: filled, where given and there is a Hessian, with what was observed of each linear.
    An expert that saw too few tokens is rounded to nearest, not observed, and counted in one note.
    ranks: the processes that call this together, with the same arguments; all get the same layers.
    finished: at process 0, the first blocks as a walk that was cut has rounded them; they only feed those
        after them.
    """
    calibrated = needs_hessian(config)
    batches = list(ranks.share(ids).split(batch)) if calibrated else []
    total = ids.numel() if calibrated else 0
    n = len(decoder)
    few: list[str] = []
    begin: int = ranks.tell(len(finished) if finished else 0)
    if begin == n:
        return
    order = range(0 if calibrated else begin, n)
    trim(decoder.device)
    with States(decoder.device, room) as states, closing(decoder.walk(order)) as walk:
        states.put(order.start, (decoder.embed(part) for part in batches), soon=True)
        if order.start < begin:
            with progress.stage("round: blocks done", begin * len(batches), blocks=begin) as bar:
                for i, block in islice(walk, begin):
                    _put_back(block, finished.block(i) if finished else {}, config, decoder.device, ranks)
                    states.put(i + 1, stepped(map(block, states.take(i)), bar), soon=True)
        left = n - begin
        with progress.stage("round", left * max(1, len(batches)), blocks=left) as bar:
            for i, block in walk:
                trim(decoder.device, room.reserved)
                rounded = _round_block(block, states.read(i), widths, config, total, seen, few, ranks, room)
                done = {name: pack(layer, config.format) for name, layer in rounded.items()}
                del rounded
                yield from done.items()
                if not calibrated:
                    bar.advance()
                for name, layer in done.items():
                    _replace(block, name, layer, config)
                del done, layer
                hidden = states.take(i)
                states.put(i + 1, stepped(map(block, hidden) if i + 1 < n else hidden, bar), soon=True)
    if few:
        progress.note(warning(few))


def _put_back(
    block: Block, layers: Mapping[str, MixedWeight], config: QuantConfig, device: torch.device, ranks: Ranks
) -> None:
    """Replace the block's linears by finished layers, which process 0 has."""
    own = {(name, key): t.to(device) for name, layer in layers.items() for key, t in layer.tensors().items()}
    tensors, _ = ranks.give(0, own)
    for name, linear in block.linears.items():
        stored: dict[str, Any] = {key: tensor for (layer, key), tensor in tensors.items() if layer == name}
        _replace(block, name, MixedWeight(linear.in_features, **stored), config)


def _replace(block: Block, name: str, weight: MixedWeight, config: QuantConfig) -> None:
    """Put the quantized layer where the linear was, for one walk: batches of one size, which need few of the
    kernels that are compiled for a model that generates, some 20 s for those of a GPU."""
    layer = MixLinear.from_weight(weight, config.format, block.linears[name].bias)
    layer.ahead = False
    block.replace(name, layer)


# Beside the fields of Rounded, float64 [parts, 2]: what `energies` gave of each part of a layer.
ENERGY = "energy"


def _round_block(
    block: Block,
    states: Iterable[Tensor],
    widths: Mapping[str, Tensor],
    config: QuantConfig,
    total: int,
    seen: dict[str, Observed] | None,
    few: list[str],
    ranks: Ranks,
    room: Room,
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

    def make(
        names: list[str], factor: Factor | None, rows: dict[str, slice]
    ) -> tuple[dict[tuple[str, str], Tensor], list[str]]:
        how = nearest if factor is None else config
        weights = [linears[name].weight[rows[name]] for name in names]
        bits = torch.cat([widths[name][rows[name]] for name in names])
        # Together: what a step costs depends little on how many rows they are.
        together = round_rows(torch.cat(weights), bits.to(weights[0].device), how, factor)
        fields: dict[tuple[str, str], Tensor] = {}
        start = 0
        for name, weight in zip(names, weights, strict=True):
            rounded = together.between(start, start + len(weight))
            start += len(weight)
            fields.update({(name, f): t for f, t in vars(rounded).items() if t is not None})
            if seen is not None and factor is not None:
                rotated = config.format.rotation == "hadamard"
                energy = energies(weight, rounded, factor.hessian, rotated=rotated)
                fields[name, ENERGY] = energy[None]
        return fields, names if factor is None else []

    factor = partial(factor_if_seen, config=config, total=total, reserved=room.reserved)
    fields, notes = divided(found, linears, ranks, factor, make, dim=0)
    unseen = set(chain.from_iterable(notes))
    few.extend(name for name in linears if name in unseen)
    done: dict[str, Rounded] = {}
    for name, linear in linears.items():
        own: dict[str, Any] = {field: tensor for (layer, field), tensor in fields.items() if layer == name}
        energy = own.pop(ENERGY, None)
        if seen is not None and energy is not None:
            seen[name] = observed(energy.sum(dim=0), inputs[name])
        bits = widths[name].to(linear.weight.device)
        done[name] = Rounded(**own) if own else round_rows(linear.weight, bits, nearest, None)
        if total and not own:
            few.append(name)
    return done
