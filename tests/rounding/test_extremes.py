"""Weights of any size, with dead rows, groups and columns, become layers that can be stored and read."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mixllm.config import QuantConfig
from mixllm.format.pack import pack, unpack
from mixllm.format.values import check_values
from mixllm.rounding import clip, columns, factor_of, round_rows
from mixllm.rounding.hessian import Factor
from tests import shapes

FORMATS = {f"{f.weight_scale}-{f.rotation}": f for f in shapes.FORMATS[::4]}
WAYS: dict[str, dict[str, Any]] = {
    "nearest": {"rounding": "rtn", "clip": False},
    "clipped": {"rounding": "rtn"},
    "gptq": {"order": False, "clip": False},
    "swept": {"clip_by": "gptq", "sweeps": 2},
}


def factor(k: int, config: QuantConfig) -> Factor:
    x = shapes.inputs(2 * k + 3, k, 1)
    x[:, k // 2] = 0
    return factor_of(x.T @ x, config, "layer")


def require_sound(w: Tensor, bits: Tensor, config: QuantConfig) -> None:
    rounded = round_rows(w, bits, config, factor(w.shape[1], config))
    packed = pack(rounded, config.format)
    assert check_values(packed.tensors(), config.format, w.shape[1]) is None
    assert bool(rounded.dequantize().isfinite().all())
    again = unpack(packed, config.format)
    for name, tensor in vars(rounded).items():
        if tensor is not None:
            assert torch.equal(getattr(again, name), tensor), name


@pytest.mark.parametrize("native", [True, False])
@settings(max_examples=60, deadline=None)
@given(
    n=shapes.out_features,
    k=st.sampled_from([1, 2, 127, 128, 130, 300]),
    size=st.integers(-45, 36),
    name=st.sampled_from(sorted(FORMATS)),
    way=st.sampled_from(sorted(WAYS)),
    seed=shapes.seeds,
)
def test_weights_of_any_size(native: bool, n: int, k: int, size: int, name: str, way: str, seed: int) -> None:
    """Up to where a group's range no longer fits float32; squares of many of them do not fit it."""
    w = shapes.weight(n, k, seed)
    w = w / w.abs().max().clamp(min=1e-6) * 10.0**size
    w[:, : min(k // 2, 128)] *= -0.0
    config = QuantConfig(format=FORMATS[name], **WAYS[way])
    with pytest.MonkeyPatch.context() as patch:
        if not native:
            for module in (clip, columns):
                patch.setattr(module, "available", lambda: False)
        require_sound(w, shapes.any_widths(n, seed), config)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("way", WAYS)
def test_rows_of_one_value_and_columns_far_above_the_rest(name: str, way: str) -> None:
    w = shapes.weight(9, 300, 5)
    w[0], w[1], w[2] = 0.3, -0.3, -0.0
    w[:, 7] = 3e30
    w[3:6, 7] = -0.0
    require_sound(w, shapes.any_widths(9, 2), QuantConfig(format=FORMATS[name], **WAYS[way]))
