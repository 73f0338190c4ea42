"""The clip search's kernel on a GPU against the plain search, rows of all widths."""

from __future__ import annotations

import pytest
import torch

from mixllm.config import PROFILES
from mixllm.rounding.clip import SHRINKS, best_grid
from mixllm.rounding.clip_triton import launch
from mixllm.rounding.grid import Grids
from tests import shapes

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize(("n", "k", "size"), [(13, 37, 1.0), (210, 300, 1e-5), (999, 128, 1e3)])
def test_kernel_equals_the_search(profile: str, n: int, k: int, size: float) -> None:
    w, bits = shapes.weight(n, k, 3) * size, shapes.any_widths(n, 4)
    part = w[:, -min(k, 128) :]
    importance = torch.rand(part.shape[1], generator=torch.Generator().manual_seed(5))
    expected = best_grid(Grids(w, bits, PROFILES[profile]), part, importance, True)
    found = launch(Grids(w.cuda(), bits.cuda(), PROFILES[profile]), part.cuda(), importance.cuda(), SHRINKS)
    off = [
        float(((part - grid.value(grid.snap(part))).square() @ importance).sum())
        for grid in (expected, type(found)(*(field.cpu() for field in vars(found).values())))
    ]
    assert off[1] == pytest.approx(off[0], rel=1e-5)
