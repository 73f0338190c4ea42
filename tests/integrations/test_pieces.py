"""A layer of vLLM made of several layers of the checkpoint, with rows of all widths."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.format.layers import layer_of_all_widths
from torch import Tensor

from mixllm.config import KERNEL_WIDTHS, PROFILES
from mixllm.format.config import QuantizedModule
from mixllm.format.pack import pack, unpack
from mixllm.format.validate import GUARD
from mixllm.integrations.served.pieces import Pieces, all_rows, wide_share

SIZES = {"q": 13, "k": 7, "v": 9}
FIRST = {"q": 0, "k": 13, "v": 20}


@pytest.mark.parametrize("profile", PROFILES)
def test_rows_of_all_widths_become_rows_that_kernels_have(profile: str) -> None:
    format, k = PROFILES[profile], 300
    layers = {name: layer_of_all_widths(format, n, k, seed=n) for name, n in SIZES.items()}
    stored = {name: pack(layer, format) for name, layer in layers.items()}
    modules = {name: QuantizedModule(k, SIZES[name], weight.counts) for name, weight in stored.items()}
    pieces = Pieces(format, modules, "qkv")
    unused: Any = None
    for name, weight in stored.items():
        for key, tensor in {**weight.tensors(), GUARD: torch.empty(0, dtype=torch.uint8)}.items():
            pieces.take(key, unused, tensor, name)

    def load(numbers: Tensor, rows: Tensor, shard: str) -> None:
        numbers.data[FIRST[shard] : FIRST[shard] + len(rows)] = rows

    made = pieces.assemble(load, sum(SIZES.values()), 0, k)
    assert tuple(made.counts) == KERNEL_WIDTHS
    expected = torch.cat([layer.dequantize() for layer in layers.values()])
    torch.testing.assert_close(unpack(made, format).dequantize(), expected, rtol=1e-6, atol=0)
    bits = torch.cat([layer.bits for layer in layers.values()])
    assert wide_share(modules.values()) == pytest.approx(float((bits > 4).float().mean()))
    assert {b: n for b, n in all_rows(modules.values()).items() if n} == {
        int(b): int((bits == b).sum()) for b in bits.unique()
    }
