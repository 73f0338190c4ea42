"""The clip searches: the kernel against the plain one, in Triton's interpreter, and by GPTQ's own error."""

from __future__ import annotations

import pytest
import torch

from mixllm.config import PROFILES
from mixllm.rounding.clip import SHRINKS, best_grid_for_gptq, search
from mixllm.rounding.clip_triton import launch
from mixllm.rounding.columns import round_columns
from mixllm.rounding.grid import Grid, Grids
from tests import shapes


@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize(
    ("n", "k", "size"),
    # With the last size errors are beyond float32, and the whole range is taken.
    [(1, 1, 1.0), (13, 37, 1.0), (21, 300, 1e-5), (9, 128, 1e6), (7, 131, 1e25)],
)
def test_kernel_equals_the_search(profile: str, n: int, k: int, size: float, clip: bool) -> None:
    w, bits = shapes.weight(n, k, 3) * size, shapes.any_widths(n, 4)
    w[n // 2] = 0
    grids = Grids(w, bits, PROFILES[profile])
    part = w[:, -min(k, 128) :]
    importance = torch.rand(part.shape[1], generator=torch.Generator().manual_seed(5))
    expected = search(grids, part, importance, clip)
    found = launch(grids, part, importance, SHRINKS if clip else SHRINKS[:1])
    off = [
        float(((part - grid.value(grid.snap(part))).square() @ importance).sum())
        for grid in (expected, found)
    ]
    # Sums in another order can take a shrink of nearly the same error, in a few rows.
    assert off[1] == pytest.approx(off[0], rel=1e-5)
    same = torch.stack([a == b for a, b in zip(vars(expected).values(), vars(found).values(), strict=True)])
    assert float(same.float().mean()) > (0.95 if clip else 0.999)


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize(("n", "k"), [(1, 1), (13, 37), (9, 128)])
def test_no_grid_has_less_of_the_error_that_gptq_counts(profile: str, n: int, k: int) -> None:
    w = shapes.weight(n, k, 3)
    grids = Grids(w, shapes.any_widths(n, 4), PROFILES[profile])
    upper = torch.randn(k, k, generator=torch.Generator().manual_seed(6)).triu() / k + torch.eye(k)

    def counted(grid: Grid) -> torch.Tensor:
        return round_columns(w, grid, upper)[1].square().sum(dim=1)

    each = torch.stack([counted(grids.make(w, shrink)) for shrink in SHRINKS])
    torch.testing.assert_close(counted(best_grid_for_gptq(grids, w, upper)), each.amin(dim=0))
