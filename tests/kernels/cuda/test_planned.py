"""A layer's second call on as many tokens: the launches of the first, with addresses of its own."""

from __future__ import annotations

import copy
import ctypes
from typing import Any

import pytest
import torch

from mixllm.config import PROFILES
from mixllm.errors import MixllmError
from mixllm.kernels.cuda import CudaLinear, layout, quantizing
from mixllm.kernels.cuda.planned import MOST_PLANS
from tests.kernels.cuda.conftest import Spy
from tests.kernels.cuda.weights import random_weight

TOKENS, ROWS4, ROWS8, INPUTS = 333, 300, 45, 1100


def linear(profile: str, rows4: int = ROWS4, seed: int = 1) -> CudaLinear:
    format = PROFILES[profile]
    weight = random_weight(rows4, ROWS4 + ROWS8 - rows4, INPUTS, format, seed)
    return CudaLinear(layout.to_kernel_order(weight, format), format)


def fields(arguments: ctypes.Structure, addresses: bool) -> dict[str, Any]:
    """Those that hold addresses, or those that don't, of structures inside too."""
    found: dict[str, Any] = {}
    for name, kind, *_ in arguments._fields_:  # type: ignore[misc]
        value = getattr(arguments, name)
        if isinstance(value, ctypes.Structure):
            found |= {f"{name}.{inner}": held for inner, held in fields(value, addresses).items()}
        elif (kind is ctypes.c_void_p) == addresses:
            found[name] = value
    return found


@pytest.mark.parametrize("profile", ["fast", "paper"])
@pytest.mark.parametrize("biased", [False, True])
def test_only_addresses_change(profile: str, biased: bool, spy: Spy) -> None:
    layer = linear(profile)
    bias = torch.randn(ROWS4 + ROWS8) if biased else None
    with torch.no_grad():
        kept = [layer(torch.randn(3, TOKENS // 3, INPUTS), bias)]
        x = torch.randn(TOKENS, INPUTS)
        kept.append(layer(x, bias))
    assert kept[0].shape == (3, TOKENS // 3, ROWS4 + ROWS8) and kept[1].shape == (TOKENS, ROWS4 + ROWS8)
    first, second = spy.given[:2], spy.given[2:]
    for (*shape, before), (*again, after) in zip(first, second, strict=True):
        assert shape == again
        assert fields(before, addresses=False) == fields(after, addresses=False)
        held, now = fields(before, addresses=True), fields(after, addresses=True)
        # No partial sums: no address at first, then one that nothing is written to.
        assert all(bool(held[name]) == bool(now[name]) for name in held if name != "partials")
    quantize, gemm = (fields(arguments, addresses=True) for *_, arguments in second)
    weights = ("codes8", "codes4", "scales8", "scales4", "out.rows", "out.row_scales")
    assert all(fields(first[1][2], addresses=True)[name] == gemm[name] for name in weights)
    assert quantize["x"] == x.data_ptr() and gemm["out.y"] == kept[1].data_ptr()
    assert gemm["out.bias"] == (None if bias is None else bias.data_ptr())
    handed = ("codes", "x"), ("scales", "x_scales"), ("sums", "out.x_sums"), ("flags", "flags")
    assert all(quantize[one] == gemm[other] for one, other in handed)
    sizes = [buffer.nbytes for buffer in quantizing.outputs(x, layer.group, True)]
    starts = [quantize[name] for name in ("codes", "scales", "sums", "flags")] + [gemm["partials"]]
    assert all(a + size <= b for a, size, b in zip(starts[:-1], sizes, starts[1:], strict=True))
    assert all((start - starts[0]) % 16 == 0 for start in starts)


@pytest.mark.parametrize("profile", ["fast", "paper"])
def test_layers_of_the_same_sizes_share_what_is_planned(profile: str, spy: Spy) -> None:
    """Other rows are 8 bits wide, in as many tiles."""
    one, other = linear(profile), linear(profile, rows4=ROWS4 - 16, seed=2)
    x, y = torch.randn(TOKENS, INPUTS), torch.randn(TOKENS, INPUTS)
    with torch.no_grad():
        one(x)
        (plan,) = one.planned.plans.values()
        other(y)
        assert list(other.planned.plans.values()) == [plan]
        shared = spy.given[2:]
        other.planned.plans.clear()
        other(y)
    for (*shape, planned_), (*again, alone) in zip(shared, spy.given[4:], strict=True):
        assert shape == again
        assert fields(planned_, addresses=False) == fields(alone, addresses=False)
    weights = ("codes8", "codes4", "scales8", "scales4", "blocks", "out.rows", "out.row_scales")
    found, expected = (fields(given[1][2], addresses=True) for given in (shared, spy.given[4:]))
    assert [found[name] for name in weights] == [expected[name] for name in weights]
    assert fields(spy.given[1][2], addresses=True)["codes4"] != found["codes4"]


def test_a_copy_multiplies_by_its_own_weight(spy: Spy) -> None:
    layer = linear("fast")
    with torch.no_grad():
        layer(torch.randn(TOKENS, INPUTS))
        again = copy.deepcopy(layer)
        again(torch.randn(TOKENS, INPUTS))
    assert len(spy.given) == 4
    assert fields(spy.given[3][2], addresses=True)["codes4"] == again.tensors[1].data_ptr()
    assert again.tensors[1].data_ptr() != layer.tensors[1].data_ptr()


def test_what_is_not_as_before_is_worked_out_or_refused(spy: Spy) -> None:
    layer, x = linear("fast"), torch.randn(TOKENS, INPUTS)
    with torch.no_grad():
        layer(x)
        with pytest.raises(MixllmError, match=r"bias must be \[345\]"):
            layer(x, torch.randn(1))
        with pytest.raises(MixllmError, match=r"input is torch\.int32"):
            layer(x.int())
        with pytest.raises(MixllmError, match="input has 1099 features"):
            layer(x[:, 1:])
        layer(x, torch.randn(ROWS4 + ROWS8, dtype=torch.float64))
    assert len(layer.planned.plans) == 1 and len(spy.given) == 4


def test_gradients_and_odd_addresses_are_not_planned(spy: Spy) -> None:
    layer = linear("fast")
    with torch.no_grad():
        layer(torch.randn(TOKENS * INPUTS + 1)[1:].view(TOKENS, INPUTS))
    assert not layer.planned.plans and len(spy.given) == 2
    with pytest.raises(NotImplementedError, match="mixllm::quantize"):  # torch's operator, for the GPU only
        layer(torch.randn(TOKENS, INPUTS))


def test_what_is_remembered_has_a_limit(spy: Spy) -> None:
    layer = linear("fast")
    with torch.no_grad():
        for tokens in range(200, 201 + MOST_PLANS):
            layer(torch.randn(tokens, INPUTS))
    kept = [shape[0] for shape, *_ in layer.planned.plans]
    assert len(kept) == MOST_PLANS and min(kept) == 201
