"""The rounding walk: block by block, each calibrated on the outputs of the quantized blocks before it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from mixllm.blocks import ON_DEVICE, Block, Decoder, Room, States
from mixllm.config import QuantConfig
from mixllm.format.mixed import MixedWeight
from mixllm.format.pack import pack
from mixllm.format.spool import Spool
from mixllm.memory import trim
from mixllm.nn import MixLinear
from mixllm.progress import Progress, stepped
from mixllm.ranks import ALONE, Ranks
from mixllm.rounding import needs_hessian
from mixllm.rounding.block import BlockRounding
from mixllm.rounding.few import warning
from mixllm.rounding.observed import Observed


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
    n = len(decoder)
    few: list[str] = []
    total = ids.numel() if calibrated else 0
    # On the device at once: later, each copy would wait for what the device has queued.
    widths = {name: bits.to(decoder.device) for name, bits in widths.items()}
    rounding = BlockRounding(config, widths, total, seen, few, ranks, room.reserved)
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
                rounded = rounding(block, states.read(i))
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
