"""The rounding walk: block by block, each calibrated on the outputs of the quantized blocks before it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor

from mixllm.blocks import Block, Decoder
from mixllm.config import QuantConfig
from mixllm.format.rounded import Rounded
from mixllm.nn import MixLinear
from mixllm.progress import Progress
from mixllm.rounding import factor_of, needs_hessian, round_rows
from mixllm.rounding.few import saw_enough, warning
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
) -> Iterator[tuple[str, Rounded]]:
    """Round every linear of the decoder; yields (full name, Rounded) in model order.

    ids: int64 [samples, L], calibration windows; widths: uint8 [N] by linear. With a Hessian to be
    had, block i + 1 is fed by the quantized block i, with int8 activations, as at run time.
    seen: filled, where given and there is a Hessian, with what was observed of each linear.
    An expert that saw too few tokens is rounded to nearest; one note to `progress` counts those.
    """
    calibrated = needs_hessian(config)
    states = [decoder.embed(part) for part in ids.split(batch)] if calibrated else []
    nearest = config.model_copy(update={"rounding": "rtn"})
    few: list[str] = []
    with progress.stage("round", len(decoder) * max(1, len(states))) as bar:
        for i in range(len(decoder)):
            with decoder.block(i) as block:
                factors, hessians, inputs = _factors(block, states, config)
                for name, linear in block.linears.items():
                    bits = widths[name].to(linear.weight.device)
                    how = config if name in factors or not calibrated else nearest
                    if how is not config:
                        few.append(name)
                    rounded = round_rows(linear.weight, bits, how, factors.get(name))
                    if seen is not None and name in hessians:
                        seen[name] = observed(
                            linear.weight, rounded.dequantize(), hessians[name], inputs[name],
                            rotated=config.format.rotation == "hadamard",
                        )  # fmt: skip
                    block.replace(name, MixLinear.from_rounded(rounded, config.format, linear.bias))
                    yield name, rounded
                if not states:
                    bar.advance()
                for b, hidden in enumerate(states):
                    states[b] = block(hidden)
                    bar.advance()
    if few:
        progress.note(warning(few))


def _factors(
    block: Block, states: list[Tensor], config: QuantConfig
) -> tuple[dict[str, Factor], dict[str, Tensor], dict[str, Inputs]]:
    """By linear: the factor, the Hessian X'X of its plain inputs and their size; an expert's linear has none
    of these if it saw no token, and no factor if it saw too few."""
    linears = block.linears if states else {}
    with collect(linears) as found, watch(linears) as inputs:
        for hidden in states:
            block(hidden)
    factors, hessians = {}, {}
    total = sum(hidden[..., 0].numel() for hidden in states)
    for shared in found:
        if saw_enough(shared, total):
            made = factor_of(shared.hessian, config, shared.names[0])
            factors.update(dict.fromkeys(shared.names, made))
        hessians.update(dict.fromkeys(shared.names, shared.hessian))
    return factors, hessians, inputs
