"""Candidates of several layers at once against each layer by itself."""

from __future__ import annotations

import pytest
import torch

from mixllm import candidates as module
from mixllm.candidates import candidate_errors, candidates
from mixllm.config import WIDTHS, QuantConfig
from mixllm.rounding import factor_of
from tests import shapes


@pytest.mark.parametrize("calibrated", [True, False])
@pytest.mark.parametrize("rows", [1, 5, 7, 100])
def test_layers_are_cut_anywhere(calibrated: bool, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """rows: taken at once, at one width."""
    k, config = 160, QuantConfig(widths=WIDTHS)
    weights = [shapes.weight(n, k, n) for n in (3, 11, 6)]
    x = shapes.inputs(300, k, 2)
    factor = factor_of(x.T @ x, config, "layer") if calibrated else None
    alone = [candidate_errors([weight], config, factor)[0] for weight in weights]
    monkeypatch.setattr(module, "rows_at_once", lambda _: rows * len(WIDTHS))
    together = candidate_errors(weights, config, factor)
    for one, other, weight in zip(alone, together, weights, strict=True):
        assert other.shape == (len(WIDTHS), *weight.shape)
        # In products of other shapes sums can be taken in another order.
        assert float((one - other).abs().gt(1e-6).float().mean()) < 0.01


def test_layers_of_several_widths_of_input_keep_their_names() -> None:
    sizes = {"a": (3, 64), "b": (4, 32), "c": (5, 64)}
    linears = {name: torch.nn.Linear(k, n, bias=False) for name, (n, k) in sizes.items()}
    with torch.no_grad():
        found = candidates(linears, linears, QuantConfig(), None)
        for name, linear in linears.items():
            assert torch.equal(found[name], candidate_errors([linear.weight], QuantConfig(), None)[0])
