"""GPTQ's walk by kernels, in Triton's interpreter, against the plain walk."""

from __future__ import annotations

import pytest
import torch

from mixllm.config import PROFILES, QuantConfig
from mixllm.rounding import factor_of
from mixllm.rounding.clip import SHRINKS
from mixllm.rounding.gptq import _walk
from mixllm.rounding.gptq_triton import launch
from mixllm.rounding.grid import Grids
from tests import shapes


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize(("n", "k"), [(1, 40), (13, 300)])
@pytest.mark.parametrize("clip", [True, False])
def test_kernels_equal_the_walk(profile: str, n: int, k: int, clip: bool) -> None:
    weight, bits = shapes.weight(n, k, 3), shapes.any_widths(n, 4)
    x = shapes.inputs(3 * k, k, 5)
    factor = factor_of(x.T @ x, QuantConfig(format=PROFILES[profile]), "layer")
    grids, order = Grids(weight, bits, PROFILES[profile]), torch.cat(factor.groups)
    w, diagonal = weight.T[order], factor.diagonal[order]
    expected = _walk(w.clone().T, grids, factor, diagonal, clip, False, None)
    found = launch(w.clone(), grids, factor, diagonal, SHRINKS if clip else SHRINKS[:1])
    # A sum in another order can move a value across the border between two codes, and then those after it.
    assert float((expected[0] != found[0]).float().mean()) < 0.03
    for one, other in zip(expected[1], found[1], strict=True):
        torch.testing.assert_close(other.scale, one.scale, rtol=0.1, atol=0)
    off = []
    for codes, chosen in (expected, found):
        parts = codes.T.split([len(columns) for columns in factor.groups], dim=1)
        values = torch.cat([grid.value(part) for grid, part in zip(chosen, parts, strict=True)], dim=1)
        error = torch.empty_like(weight)
        error[:, order] = values - weight[:, order]
        off.append(float(((error @ factor.hessian) * error).sum()))
    assert off[1] == pytest.approx(off[0], rel=0.02)
