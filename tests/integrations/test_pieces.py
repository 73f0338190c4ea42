"""A layer of vLLM made of several layers of the checkpoint, with rows of all widths."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from tests.format.layers import layer_of_all_widths
from torch import Tensor

from mixllm.config import KERNEL_WIDTHS, PROFILES
from mixllm.errors import MixllmError
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
            pieces.loader(key)(unused, tensor, name)

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


class OnAGpu:
    """A tensor in a buffer that its loader uses again."""

    def __init__(self, tensor: Tensor) -> None:
        self.buffer = tensor

    def cpu(self) -> Tensor:
        return self.buffer.clone()


def test_tensors_that_come_on_a_gpu_are_copied_and_those_of_files_are_not() -> None:
    pieces, unused, codes = Pieces(PROFILES["fast"], {}, "o_proj"), cast(Any, None), torch.ones(5, 3)
    given = codes.clone()
    pieces.loader("codes4")(unused, OnAGpu(given))
    given.zero_()
    pieces.loader("codes8")(unused, codes)
    kept = pieces.shards[None]
    assert torch.equal(kept["codes4"], codes) and kept["codes8"] is codes


def test_a_layer_is_loaded_once() -> None:
    format, k = PROFILES["fast"], 200
    weight = pack(layer_of_all_widths(format, 9, k, seed=1), format)
    pieces, unused = (
        Pieces(format, {"o_proj": QuantizedModule(k, 9, weight.counts)}, "o_proj"),
        cast(Any, None),
    )
    for key, tensor in {**weight.tensors(), GUARD: torch.empty(0, dtype=torch.uint8)}.items():
        pieces.loader(key)(unused, tensor)
    pieces.assemble(lambda numbers, rows: numbers.data.copy_(rows), 9, 0, k)
    with pytest.raises(MixllmError, match="o_proj: a mixllm layer is loaded once; start the engine anew"):
        pieces.loader("codes4")(unused, weight.codes4)


@pytest.mark.parametrize(
    ("key", "dtype"), [("codes4", torch.int8), ("codes8", torch.float32), ("scales4", torch.float16)]
)
def test_a_tensor_of_another_dtype_is_named(key: str, dtype: torch.dtype) -> None:
    """Codes of four bits in signed bytes would be unpacked, and wrong where the upper one is 8 or more."""
    format, k = PROFILES["fast"], 200
    weight = pack(layer_of_all_widths(format, 9, k, seed=1), format)
    pieces = Pieces(format, {"o_proj": QuantizedModule(k, 9, weight.counts)}, "o_proj")
    unused = cast(Any, None)
    for name, tensor in {**weight.tensors(), GUARD: torch.empty(0, dtype=torch.uint8)}.items():
        pieces.loader(name)(unused, tensor.to(dtype) if name == key else tensor)
    with pytest.raises(MixllmError, match=f"o_proj: {key}: its dtype is {dtype}; download the model again"):
        pieces.assemble(lambda numbers, rows: numbers.data.copy_(rows), 9, 0, k)
