"""MixLinear keeps what was optimised through every move a model makes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from mixllm.config import PROFILES, Format, QuantConfig
from mixllm.kernels import prepare
from mixllm.nn import MixLinear
from mixllm.rounding import round_rows
from tests import shapes

N, K = 21, 200


def layer(format: Format, bias: bool = True) -> MixLinear:
    config = QuantConfig(format=format, rounding="rtn", clip=False)
    rounded = round_rows(shapes.weight(N, K, 1), shapes.widths(N, 0.3, 2), config, None)
    return MixLinear.from_rounded(rounded, format, torch.linspace(-1, 1, N) if bias else None)


@pytest.mark.parametrize("profile", PROFILES)
def test_is_close_to_the_float_layer(profile: str) -> None:
    x = torch.randn(5, K, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.linear(x, shapes.weight(N, K, 1), torch.linspace(-1, 1, N))
    error = (layer(PROFILES[profile])(x) - expected).norm() / expected.norm()
    assert 0.001 < float(error) < 0.08


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_change_of_dtype_reaches_the_bias_alone(profile: str, dtype: torch.dtype) -> None:
    before = layer(PROFILES[profile])
    after = copy.deepcopy(before).to(dtype)
    for name, tensor in before.stored.tensors().items():
        moved = after.get_buffer(name)
        assert moved.dtype == tensor.dtype and torch.equal(moved, tensor), name
    assert after.bias is not None and after.bias.dtype == dtype


def test_state_dict_holds_the_tensors_of_a_checkpoint() -> None:
    assert set(layer(PROFILES["fast"]).state_dict()) == {
        "rows", "codes4", "zeros4", "scales4", "multipliers4", "codes8", "scales8", "bias"
    }  # fmt: skip
    assert set(layer(PROFILES["paper"], bias=False).state_dict()) == {
        "rows", "codes4", "zeros4", "scales4", "codes8", "scales8"
    }  # fmt: skip


def test_an_empty_layer_on_meta_takes_a_state_dict() -> None:
    full = layer(PROFILES["fast"])
    rows = {4: len(full.get_buffer("codes4")), 8: len(full.get_buffer("codes8"))}
    empty = MixLinear(K, N, rows, full.format, bias=True, device="meta")
    empty.load_state_dict(full.state_dict(), assign=True)
    x = shapes.inputs(3, K, 0)
    assert torch.equal(empty(x), full(x))


def test_a_forward_after_loading_new_tensors_sees_them() -> None:
    first, second = layer(PROFILES["fast"]), layer(PROFILES["fast"])
    second.get_buffer("codes4").fill_(0x33)
    x = shapes.inputs(3, K, 0)
    before = first(x)
    first.load_state_dict(second.state_dict())
    assert not torch.equal(first(x), before)
    assert torch.equal(first(x), second(x))


@pytest.mark.parametrize("ahead", [True, False])
def test_kernels_are_compiled_ahead_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch, ahead: bool
) -> None:
    asked: list[bool] = []

    def noted(*given: Any, ahead: bool) -> Any:
        asked.append(ahead)
        return prepare(*given, ahead=ahead)

    monkeypatch.setattr("mixllm.nn.prepare", noted)
    mixed = layer(PROFILES["fast"])
    if not ahead:
        mixed.ahead = False
    mixed(torch.ones(2, K))
    assert asked == [ahead]
