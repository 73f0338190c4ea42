"""The candidates of a block's layers, by what all processes collected, and their errors."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor

from mixllm.blocks import Block
from mixllm.config import QuantConfig
from mixllm.format.rounded import Rounded
from mixllm.ranks import Ranks
from mixllm.rounding.divided import divided
from mixllm.rounding.few import factor_if_seen
from mixllm.rounding.hessian import Factor, Shared
from mixllm.salience.candidates import candidate_errors, candidates
from mixllm.salience.errors import Errors


def block_candidates(
    block: Block, shared: list[Shared], config: QuantConfig, total: int, ranks: Ranks, reserved: int
) -> dict[str, Rounded]:
    """Candidates of the block's linears by the Hessians that all processes collected, but for experts that
    saw too few of all `total` tokens; those of all linears rounded to nearest where nothing was collected."""
    weights = {name: linear.weight for name, linear in block.linears.items()}

    def make(
        names: list[str], inputs: Factor | None, rows: dict[str, slice]
    ) -> tuple[dict[tuple[str, str], Tensor], None]:
        made = candidates({name: weights[name][rows[name]] for name in names}, config, inputs)
        fields = {(n, f): t for n, rounded in made.items() for f, t in vars(rounded).items() if t is not None}
        return {key: tensor.unflatten(0, (len(config.widths), -1)) for key, tensor in fields.items()}, None

    found: dict[str, dict[str, Any]] = {}
    if config.error == "gptq":
        factor = partial(factor_if_seen, config=config, total=total, reserved=reserved)
        for (name, field), tensor in divided(shared, block.linears, ranks, factor, make, dim=1)[0].items():
            found.setdefault(name, {})[field] = tensor.flatten(0, 1)
    # No token reached the experts that are missing.
    rest = candidates({n: weight for n, weight in weights.items() if n not in found}, config, None)
    return {name: Rounded(**found[name]) if name in found else rest[name] for name in weights}


def block_errors(block: Block, made: dict[str, Rounded], config: QuantConfig) -> dict[str, Errors]:
    """candidate_errors of the block's linears; the candidates go as their errors come."""
    return {
        name: Errors.made(candidate_errors(linear.weight, made.pop(name), config.format))
        for name, linear in block.linears.items()
    }
