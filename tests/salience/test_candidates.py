"""Candidates of several layers at once against each layer by itself."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mixllm.config import WIDTHS, QuantConfig
from mixllm.rounding import factor_of
from mixllm.rounding.hessian import Factor
from mixllm.salience import candidates as module
from mixllm.salience.candidates import candidate_errors, candidates
from tests import shapes


def errors(weight: Tensor, config: QuantConfig, inputs: Factor | None) -> Tensor:
    return candidate_errors(weight, candidates({"layer": weight}, config, inputs)["layer"], config.format)


@pytest.mark.parametrize("calibrated", [True, False])
@pytest.mark.parametrize("rows", [1, 5, 7, 100])
def test_layers_are_cut_anywhere(calibrated: bool, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """rows: taken at once, at one width."""
    k, config = 160, QuantConfig(widths=WIDTHS)
    weights = [shapes.weight(n, k, n) for n in (3, 11, 6)]
    x = shapes.inputs(300, k, 2)
    factor = factor_of(x.T @ x, config, "layer") if calibrated else None
    alone = [errors(weight, config, factor) for weight in weights]
    monkeypatch.setattr(module, "rows_at_once", lambda _: rows * len(WIDTHS))
    named = {str(i): weight for i, weight in enumerate(weights)}
    found = candidates(named, config, factor)
    for one, (name, weight) in zip(alone, named.items(), strict=True):
        other = candidate_errors(weight, found[name], config.format)
        assert other.shape == (len(WIDTHS), *weight.shape)
        # In products of other shapes sums can be taken in another order.
        assert float((one - other).abs().gt(1e-6).float().mean()) < 0.01


def test_layers_of_several_widths_of_input_keep_their_names() -> None:
    sizes = {"a": (3, 64), "b": (4, 32), "c": (5, 64)}
    weights = {name: shapes.weight(n, k, n) for name, (n, k) in sizes.items()}
    found = candidates(weights, QuantConfig(), None)
    for name, weight in weights.items():
        other = candidate_errors(weight, found[name], QuantConfig().format)
        assert torch.equal(other, errors(weight, QuantConfig(), None))
