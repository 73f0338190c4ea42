"""The GPU kernel of GPTQ's inner loop against the plain loop, in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch

from mixllm.config import PROFILES
from mixllm.rounding.columns import one_by_one
from mixllm.rounding.columns_triton import launch
from mixllm.rounding.grid import Grids
from tests import shapes


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize(("n", "length"), [(1, 1), (13, 37), (21, 128)])
@pytest.mark.parametrize("own_origin", [True, False])
def test_kernel_equals_the_loop(profile: str, n: int, length: int, own_origin: bool) -> None:
    w, bits = shapes.weight(n, length, 3), shapes.widths(n, 0.3, 4)
    grid = Grids(w, bits, PROFILES[profile]).make(w, 0.9)
    x = shapes.inputs(4 * length, length, 5)
    upper = torch.linalg.cholesky(torch.linalg.inv(x.T @ x + torch.eye(length)), upper=True)
    origin = None if own_origin else w + 0.1 * shapes.weight(n, length, 7)
    expected, found = one_by_one(w, grid, upper, origin), launch(w, grid, upper, origin)
    # Sums in another order can move a value across the border between two codes.
    assert float((expected[0] != found[0]).float().mean()) < 0.01
    same = (expected[0] == found[0]).all(dim=1)
    torch.testing.assert_close(found[1][same], expected[1][same], rtol=1e-3, atol=1e-4)
