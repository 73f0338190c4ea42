"""Experts that calibration hardly reached.

An expert sees the tokens that are routed to it, and a Hessian of few of them says little of others: with
fewer tokens than inputs, GPTQ makes about as great an error on other tokens as rounding to nearest, or a
greater one (measured: benchmarks/few_tokens.py, docs/method.md).
"""

from __future__ import annotations

from collections.abc import Iterable

from mixllm.config import QuantConfig
from mixllm.memory import trim
from mixllm.rounding import factor_of
from mixllm.rounding.hessian import Factor, Shared


def factor_if_seen(shared: Shared, config: QuantConfig, total: int, reserved: int = 2**62) -> Factor | None:
    """factor_of the layers' Hessian; None where it is of fewer tokens than inputs, too few for GPTQ.

    total: tokens of the text; a layer that saw all of them is no expert. reserved: bytes of a GPU that
    torch's allocator should hold at most while it is factored (see mixllm.memory.trim).
    """
    hessian = shared.hessian
    if shared.tokens < min(total, len(hessian)):
        return None
    # A copy of it and the factor, which are the largest tensors of all.
    trim(hessian.device, reserved, coming=2 * hessian.nbytes)
    return factor_of(hessian, config, shared.names[0])


def warning(layers: Iterable[str]) -> str:
    """One line about layers, by name, that were rounded to nearest since their expert saw too few tokens."""
    experts = list(dict.fromkeys(name.rpartition(".")[0] for name in layers))
    many = f"{len(experts)} experts" if len(experts) > 1 else "1 expert"
    return (
        f"{many} saw too few calibration tokens for GPTQ and got rounding to nearest "
        f"({experts[0]}{' ...' if len(experts) > 1 else ''}); more --samples reach more of them"
    )
