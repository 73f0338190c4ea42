"""Experts that calibration hardly reached.

An expert sees the tokens that are routed to it, and a Hessian of few of them says little of others. GPTQ
on SmolLM2-135M's layers from n tokens, its output error on 4,096 other tokens over that of rounding to
nearest (both with clip; the mean of six layers, of 576 and 1,536 inputs, early, middle and late):

    n / inputs     1/16   1/8   1/4   1/2    1     2     4
    error ratio     .99  1.04  1.10  1.14  1.03   .85   .78
"""

from __future__ import annotations

from collections.abc import Iterable

from mixllm.config import QuantConfig
from mixllm.rounding import factor_of
from mixllm.rounding.hessian import Factor, Shared, rotate_both

# Tokens an input: below, an early layer loses up to a third by GPTQ.
LEAST = 1.5


def factor_if_seen(shared: Shared, config: QuantConfig, total: int) -> Factor | None:
    """factor_of the layers' Hessian; None where it is of too few tokens for GPTQ.

    Either way the Hessian is rotated in place where the format rotates. total: tokens of the text; a layer
    that saw all of them is no expert.
    """
    if shared.tokens >= min(total, LEAST * len(shared.hessian)):
        return factor_of(shared.hessian, config, shared.names[0])
    if config.format.rotation == "hadamard":
        rotate_both(shared.hessian)
    return None


def warning(layers: Iterable[str]) -> str:
    """One line about layers, by name, that were rounded to nearest since their expert saw too few tokens."""
    experts = list(dict.fromkeys(name.rpartition(".")[0] for name in layers))
    many = f"{len(experts)} experts" if len(experts) > 1 else "1 expert"
    return (
        f"{many} saw too few calibration tokens for GPTQ and got rounding to nearest "
        f"({experts[0]}{' ...' if len(experts) > 1 else ''}); more --samples reach more of them"
    )
