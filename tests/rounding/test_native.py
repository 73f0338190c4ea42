"""The CPU library's clip search and column loop against torch's own steps, on every instruction set."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mixllm.config import PROFILES
from mixllm.kernels import cpu
from mixllm.rounding import native
from mixllm.rounding.clip import SHRINKS, best_grid, search
from mixllm.rounding.columns import one_by_one, round_columns
from mixllm.rounding.grid import Grid, Grids
from tests import shapes
from tests.kernels.cpu.guard import guarded

isas = pytest.mark.parametrize("isa", range(len(cpu.instruction_sets())), ids=cpu.instruction_sets())
profiles = pytest.mark.parametrize("profile", PROFILES)


def case(profile: str, n: int, k: int, size: float = 1.0) -> tuple[Grids, Tensor, Tensor]:
    """Grids of a weight, its last group [n, l] and what that group's inputs weigh."""
    w = shapes.weight(n, k, 3) * size
    w[n // 2] = 0
    part = w[:, -min(k, 128) :]
    importance = torch.rand(part.shape[1], generator=torch.Generator().manual_seed(5))
    return Grids(w, shapes.any_widths(n, 4), PROFILES[profile]), part, importance


def triangle(length: int) -> Tensor:
    x = shapes.inputs(4 * length, length, 5)
    return torch.linalg.cholesky(torch.linalg.inv(x.T @ x + torch.eye(length)), upper=True)


@isas
@profiles
@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize(("n", "k", "size"), [(1, 1, 1.0), (33, 37, 1.0), (71, 300, 1e-5), (32, 128, 1e6)])
def test_finds_the_grid_that_the_search_finds(
    profile: str, n: int, k: int, size: float, clip: bool, isa: int
) -> None:
    grids, part, importance = case(profile, n, k, size)
    expected = search(grids, part, importance, clip)
    found = native.best_grid(grids, part, importance, SHRINKS if clip else SHRINKS[:1], isa)
    off = [
        float(((part - grid.value(grid.snap(part))).square() @ importance).sum())
        for grid in (expected, found)
    ]
    # Sums in another order can take a shrink of nearly the same error, in a few rows.
    assert off[1] == pytest.approx(off[0], rel=1e-5)
    same = torch.stack([a == b for a, b in zip(vars(expected).values(), vars(found).values(), strict=True)])
    assert float(same.float().mean()) > (0.98 if clip else 0.999)


@isas
@profiles
@pytest.mark.parametrize(("n", "length"), [(1, 1), (33, 37), (71, 128)])
@pytest.mark.parametrize("own_origin", [True, False])
def test_rounds_columns_as_the_loop_does(
    profile: str, n: int, length: int, own_origin: bool, isa: int
) -> None:
    grids, part, _ = case(profile, n, length)
    grid, upper = grids.make(part, 0.9), triangle(length)
    origin = None if own_origin else part + 0.1 * shapes.weight(n, length, 7)
    expected = one_by_one(part, grid, upper, origin)
    found = native.round_columns(part, grid, upper, origin, isa)
    # Sums that round twice where others round once can move a value across the border between two codes.
    assert float((expected[0] != found[0]).float().mean()) < 0.01
    same = (expected[0] == found[0]).all(dim=1)
    torch.testing.assert_close(found[1][same], expected[1][same], rtol=1e-3, atol=1e-4)


@isas
@profiles
def test_all_instruction_sets_give_the_same_bits_and_touch_nothing_else(profile: str, isa: int) -> None:
    grids, part, importance = case(profile, 41, 217)
    upper, last = triangle(89), len(cpu.instruction_sets()) - 1
    by_column, importance, upper = (
        part[:, -89:].T.contiguous(),
        importance[-89:].contiguous(),
        upper.contiguous(),
    )

    def made(by_column: Tensor, importance: Tensor, upper: Tensor, isa: int) -> tuple[Tensor, ...]:
        grid: Grid = native.best_grid(grids, by_column.T, importance, SHRINKS, isa)
        return (*vars(grid).values(), *native.round_columns(by_column.T, grid, upper, by_column.T, isa))

    expected = made(by_column, importance, upper, last)
    with guarded([by_column, importance, upper]) as copies:
        found = made(copies[0], copies[1], copies[2], isa)
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


@profiles
def test_rounding_takes_it(profile: str) -> None:
    """Where the library is there, groups go through it: to the bit."""
    grids, part, importance = case(profile, 33, 128)
    grid = best_grid(grids, part, importance, clip=True)
    library = native.best_grid(grids, part, importance, SHRINKS)
    assert all(torch.equal(a, b) for a, b in zip(vars(grid).values(), vars(library).values(), strict=True))
    upper = triangle(128)
    pairs = zip(round_columns(part, grid, upper), native.round_columns(part, grid, upper, None), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
