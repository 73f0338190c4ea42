"""The rounding walk: block by block, each calibrated on the outputs of the quantized blocks before it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from mixllm.blocks import Block, Decoder
from mixllm.config import QuantConfig
from mixllm.format.mixed import MixedWeight
from mixllm.format.rounded import Rounded
from mixllm.format.spool import Spool
from mixllm.nn import MixLinear
from mixllm.progress import Progress, Stage
from mixllm.rounding import factor_of, needs_hessian, round_rows
from mixllm.rounding.hessian import Factor, collect
from mixllm.rounding.observed import Inputs, Observed, observed, watch


def round_model(
    decoder: Decoder,
    ids: Tensor,
    widths: Mapping[str, Tensor],
    config: QuantConfig,
    *,
    batch: int,
    progress: Progress,
    seen: dict[str, Observed] | None = None,
    finished: Spool | None = None,
) -> Iterator[tuple[str, Rounded]]:
    """Round every linear of the decoder; yields (full name, Rounded) in model order, block by block.

    ids: int64 [samples, L], calibration windows; widths: uint8 [N] by linear. With a Hessian to be
    had, block i + 1 is fed by the quantized block i, with int8 activations, as at run time.
    seen: filled, where given and there is a Hessian, with what was observed of each linear.
    finished: the first blocks as a walk that was cut has rounded them; they only feed those after them.
    """
    begin = len(finished) if finished else 0
    if begin == len(decoder):
        return
    states = [decoder.embed(part) for part in ids.split(batch)] if needs_hessian(config) else []
    if finished and states:
        with progress.stage("round: blocks done", begin * len(states), blocks=begin) as bar:
            for i in range(begin):
                with decoder.block(i) as block:
                    _put_back(block, finished.block(i), config, decoder.device)
                    _forward(block, states, bar)
    left = len(decoder) - begin
    with progress.stage("round", left * max(1, len(states)), blocks=left) as bar:
        for i in range(begin, len(decoder)):
            with decoder.block(i) as block:
                factors, hessians, inputs = _factors(block, states, config)
                for name, linear in block.linears.items():
                    bits = widths[name].to(linear.weight.device)
                    rounded = round_rows(linear.weight, bits, config, factors.get(name))
                    if seen is not None and name in factors:
                        seen[name] = observed(
                            linear.weight, rounded.dequantize(), hessians[name], inputs[name],
                            rotated=config.format.rotation == "hadamard",
                        )  # fmt: skip
                    block.replace(name, MixLinear.from_rounded(rounded, config.format, linear.bias))
                    yield name, rounded
                if not states:
                    bar.advance()
                _forward(block, states, bar)


def _put_back(
    block: Block, layers: Mapping[str, MixedWeight], config: QuantConfig, device: torch.device
) -> None:
    for name, weight in layers.items():
        layer = MixLinear.from_weight(weight.to(device), config.format, block.linears[name].bias)
        block.replace(name, layer)


def _forward(block: Block, states: list[Tensor], bar: Stage) -> None:
    for b, hidden in enumerate(states):
        states[b] = block(hidden)
        bar.advance()


def _factors(
    block: Block, states: list[Tensor], config: QuantConfig
) -> tuple[dict[str, Factor], dict[str, Tensor], dict[str, Inputs]]:
    """By linear: the factor, the Hessian X'X of its plain inputs and their size."""
    linears = block.linears if states else {}
    with collect(linears) as found, watch(linears) as inputs:
        for hidden in states:
            block(hidden)
    factors, hessians = {}, {}
    for shared in found:
        made = factor_of(shared.hessian, config, shared.names[0])
        factors.update(dict.fromkeys(shared.names, made))
        hessians.update(dict.fromkeys(shared.names, shared.hessian))
    return factors, hessians, inputs
