"""The reference linear layer against the definition, summed term by term."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mixllm.config import Format, QuantConfig
from mixllm.format.pack import pack
from mixllm.format.rounded import Rounded, spread
from mixllm.kernels.activations import quantize_activations
from mixllm.kernels.reference import EXACT_INPUTS, ReferenceLinear, _cut, integer_products
from mixllm.rounding import round_rows
from tests import shapes


def rounded(format: Format, n: int, k: int, share8: float, seed: int) -> Rounded:
    config = QuantConfig(format=format, rounding="rtn", clip=False)
    return round_rows(shapes.weight(n, k, seed), shapes.widths(n, share8, seed), config, None)


def definition(x: torch.Tensor, r: Rounded, format: Format) -> torch.Tensor:
    """y = sum_k (q_a s_a) ((q_w - z) s_w), in float64."""
    k = x.shape[1]
    codes, scales = quantize_activations(x, format)
    a = codes.double() * scales.double().repeat_interleave(format.activation_width(k), dim=1)[:, :k]
    w = (r.codes.double() - spread(r.zeros.double(), k)) * spread(r.scales.double(), k)
    return a @ w.T


@pytest.mark.parametrize("format", shapes.FORMATS, ids=shapes.FORMAT_IDS)
@given(shapes.out_features, shapes.in_features, shapes.tokens, st.sampled_from([0.0, 0.3, 1.0]), shapes.seeds)
def test_meets_the_definition(format: Format, n: int, k: int, t: int, share8: float, seed: int) -> None:
    r = rounded(format, n, k, share8, seed)
    x, bias = shapes.inputs(t, k, seed), torch.randn(n, generator=torch.Generator().manual_seed(seed))
    y = ReferenceLinear(pack(r, format), format)(x, bias)
    product = definition(x, r, format)
    expected = product + bias.double()
    # The bias can all but cancel the product, and leaves its rounding.
    largest = float((product.abs() + bias.abs()).amax()) if t else 0.0
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-5 * largest)


@given(st.integers(1, 5), st.integers(1, 5), st.sampled_from([1, 1024, 1025, 5000]), shapes.seeds)
def test_integer_products_are_exact(t: int, n: int, k: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    a = torch.randint(-127, 128, (t, k), generator=generator)
    w = torch.randint(-128, 128, (n, k), generator=generator)
    assert torch.equal(integer_products(a.float(), w.to(torch.int8)), (a @ w.T).int())


def test_integer_products_are_exact_at_their_largest() -> None:
    k = 65_536
    a, w = torch.full((1, k), -127.0), torch.full((1, k), -128, dtype=torch.int8)
    assert integer_products(a, w).item() == 127 * 128 * k
    assert 127 * 128 * EXACT_INPUTS < 2**24


@pytest.mark.parametrize("format", shapes.FORMATS[::5], ids=shapes.FORMAT_IDS[::5])
def test_a_token_with_nan_gives_nan_and_leaves_the_others_exact(format: Format) -> None:
    layer = ReferenceLinear(pack(rounded(format, 9, 300, 0.3, 1), format), format)
    x = shapes.inputs(3, 300, 2)
    clean = layer(x)
    x[1, 299] = math.nan
    y = layer(x)
    assert bool(y[1].isnan().all())
    assert torch.equal(y[[0, 2]], clean[[0, 2]])


@pytest.mark.parametrize("format", [Format(), Format(weight_scale="group", activation_group=128)])
def test_reduced_matmul_precision_does_not_reach_the_integers(
    monkeypatch: pytest.MonkeyPatch, format: Format
) -> None:
    """Not every processor has products of less precision, so what is asked of them is looked at too."""
    layer, x = (
        ReferenceLinear(pack(rounded(format, 9, 700, 0.3, 1), format), format),
        shapes.inputs(4, 700, 2),
    )
    clean = layer(x)
    asked: list[str] = []

    def cut(*given: Any) -> Any:
        asked.append(torch.get_float32_matmul_precision())
        return _cut(*given)

    monkeypatch.setattr("mixllm.kernels.reference._cut", cut)
    torch.set_float32_matmul_precision("medium")
    try:
        assert torch.equal(layer(x), clean)
        assert torch.get_float32_matmul_precision() == "medium" and set(asked) == {"highest"}
    finally:
        torch.set_float32_matmul_precision("highest")


def test_shape_and_dtype_follow_the_input() -> None:
    format = Format()
    layer = ReferenceLinear(pack(rounded(format, 9, 200, 0.3, 1), format), format)
    y = layer(shapes.inputs(6, 200, 2).view(2, 3, 200).bfloat16())
    assert y.shape == (2, 3, 9) and y.dtype == torch.bfloat16
