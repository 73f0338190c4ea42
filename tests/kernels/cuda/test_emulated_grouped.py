"""csrc/grouped.cu, compiled for the CPU as test_emulated.py has it: experts with many, few and no tokens."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from mixllm.config import PROFILES
from mixllm.kernels import reference
from mixllm.kernels.cuda import grouped, routing
from mixllm.kernels.cuda.launch import Device
from mixllm.kernels.cuda.tiles import Tile
from tests import shapes
from tests.kernels.cuda.test_emulated import build, quantized
from tests.kernels.cuda.weights import random_weight

pytestmark = pytest.mark.nvcc

# Rows of 4 and of 8 bits of each expert: as many in all.
ROWS = [(60, 13), (73, 0), (0, 73), (33, 40), (1, 72)]


def routed(ids: Tensor, experts: int, directory: Path) -> tuple[Tensor, Tensor, Tensor]:
    """What routing.route gives on a GPU."""
    directory = directory / "route"
    directory.mkdir()
    kernel = build("route.cu", "route", {"EXPERTS": 64}, directory)
    outputs = routing._outputs(ids, experts)
    for tensor in outputs:
        tensor.fill_(-7)
    kernel.launch(1, routing.THREADS, routing.arguments(ids, *outputs))
    return outputs


def test_routing(tmp_path: Path) -> None:
    experts = 9
    ids = torch.rand(300, experts, generator=torch.Generator().manual_seed(0)).topk(4).indices % 7
    token, place, ranges = routed(ids, experts, tmp_path)
    assert torch.equal(ranges[:, 1], torch.bincount(ids.flatten(), minlength=experts).int())
    room = (ranges[:, 1] + 3) // 4 * 4
    assert torch.equal(ranges[:, 0], room.cumsum(0).int() - room)
    first, last = ranges[ids, 0], ranges.sum(1)[ids]
    assert bool(((place >= first) & (place < last)).all()) and len(place.unique()) == ids.numel()
    assert torch.equal(token[place], torch.arange(300)[:, None].expand(-1, 4))
    empty = torch.ones(len(token), dtype=torch.bool)
    empty[place.flatten()] = False
    assert not token[empty].any()


@pytest.mark.parametrize(
    ("profile", "tile", "k", "counts", "blocks"),
    [
        ("fast", Tile(64, 16, 2, 2, 1, 3, 1), 300, [5, 0, 1, 40, 3], 3),
        ("fast", Tile(64, 32, 2, 1, 2, 3, 1), 1100, [1, 0, 0, 0, 0], 132),
        ("paper", Tile(64, 16, 2, 2, 1, 3, 1), 700, [17, 3, 6, 0, 1], 2),
    ],
)
def test_product(
    profile: str, tile: Tile, k: int, counts: list[int], blocks: int, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    format = PROFILES[profile]
    weights = [random_weight(n4, n8, k, format, n4) for n4, n8 in ROWS]
    linear = grouped.GroupedLinear(weights, format, torch.device("cpu"))
    macros = {**tile.macros(), **linear.scales.macros()}
    kernel = build("grouped.cu", "grouped_gemm", macros, tmp_path)
    monkeypatch.setattr(grouped, "product", lambda *_: kernel)
    monkeypatch.setattr(grouped, "device", lambda _: Device(0, (8, 0), blocks, 166912))

    ids = torch.repeat_interleave(torch.arange(len(ROWS)), torch.tensor(counts))
    ids = ids[torch.randperm(len(ids), generator=torch.Generator().manual_seed(0))][:, None]
    x = shapes.inputs(len(ids), k, 1)
    token, place, ranges = routed(ids, len(ROWS), tmp_path)
    assert ranges[:, 1].tolist() == counts
    y = torch.full((len(token), 73), 7777.0)
    codes, scales, sums, _ = quantized(x[token], format)
    table = (linear.experts, ranges, linear.most_tiles)
    grouped.grouped_into(y, codes, scales, sums, linear.tensors, *table, linear.scales, linear.group, tile)
    references = [reference.ReferenceLinear(weight, format) for weight in weights]
    expected = [references[i](x[n : n + 1]) for n, i in enumerate(ids[:, 0].tolist())]
    if profile == "fast":
        assert torch.equal(y[place[:, 0]], torch.cat(expected))
    else:
        torch.testing.assert_close(y[place[:, 0]], torch.cat(expected), rtol=1e-5, atol=1e-5)
    empty = torch.ones(len(y), dtype=torch.bool)
    empty[place.flatten()] = False
    assert bool((y[empty] == 7777).all()), "rows of empty places are not written"
