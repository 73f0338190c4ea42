"""The layer that is tuned: equal to the reference where nothing was tuned, right in its gradients."""

from __future__ import annotations

import pytest
import torch

from mixllm.config import Format, QuantConfig
from mixllm.format.pack import pack, unpack
from mixllm.kernels.activations import fake_quantize
from mixllm.kernels.reference import ReferenceLinear
from mixllm.rotation import rotate
from mixllm.rounding import round_rows
from mixllm.tuning.layer import TunedLinear
from mixllm.tuning.seen import Seen
from tests import shapes
from tests.shapes import FORMAT_IDS, FORMATS

T, N, K = 5, 21, 328


def layer(format: Format) -> tuple[TunedLinear, ReferenceLinear, torch.Tensor]:
    config = QuantConfig(format=format, rounding="rtn", clip=False)
    rounded = round_rows(shapes.weight(N, K, 3), shapes.widths(N, 0.3, 4), config, None)
    bias = torch.linspace(-1, 1, N)
    return TunedLinear(rounded, format, bias), ReferenceLinear(pack(rounded, format), format), bias


@pytest.mark.parametrize("format", FORMATS, ids=FORMAT_IDS)
def test_untuned_it_is_the_reference(format: Format) -> None:
    tuned, reference, bias = layer(format)
    x = shapes.inputs(T, K, 1)
    # A rotation whose sums run in another order moves a few activations by one of 127 steps.
    torch.testing.assert_close(tuned(x), reference(x, bias), rtol=2e-2, atol=2e-2 * float(x.abs().max()) / 30)


def test_all_of_it_moves_to_another_device() -> None:
    tuned, _, _ = layer(FORMATS[0])
    assert {tensor.device.type for tensor in tuned.to("meta").state_dict().values()} == {"meta"}
    assert {"values", "scales", "gain"} <= tuned.state_dict().keys()


@pytest.mark.parametrize("rotation", ["none", "hadamard"])
def test_gradients_are_those_of_the_layer_without_activation_rounding(rotation: str) -> None:
    format = Format.model_validate({"rotation": rotation})
    tuned, _, bias = layer(format)
    x = shapes.inputs(T, K, 1).requires_grad_()
    up = torch.randn(T, N, generator=torch.Generator().manual_seed(5))
    by_x, by_gain = torch.autograd.grad(tuned(x), [x, tuned.gain], up)
    weight = tuned.values.float() * tuned.scales
    if rotation == "hadamard":
        weight = rotate(weight)
    torch.testing.assert_close(by_x, up @ weight, rtol=1e-3, atol=1e-4)
    y = tuned(x.detach()).detach() - bias
    torch.testing.assert_close(by_gain, (up * y).sum(0), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("format", FORMATS[::4], ids=FORMAT_IDS[::4])
def test_a_scaled_layer_is_stored_and_means_the_tuned_one(format: Format) -> None:
    config = QuantConfig(format=format, rounding="rtn", clip=False)
    rounded = round_rows(shapes.weight(N, K, 3), shapes.widths(N, 0.3, 4), config, None)
    factors = torch.linspace(0.9, 1.1, N)
    scaled = rounded.scaled(factors)
    stored = unpack(pack(scaled, format), format)
    assert torch.equal(stored.scales, scaled.scales)
    assert torch.equal(stored.codes, rounded.codes)
    torch.testing.assert_close(
        scaled.dequantize(), rounded.dequantize() * factors[:, None], rtol=1e-3, atol=1e-7
    )
    assert pack(scaled, format).scales4.dtype == pack(rounded, format).scales4.dtype


@pytest.mark.parametrize("format", FORMATS[::3], ids=FORMAT_IDS[::3])
def test_what_layers_see_is_made_once_and_is_what_int8_leaves(format: Format) -> None:
    seen = Seen(format)
    x, other = shapes.inputs(T, K, 1), shapes.inputs(T, K, 2)
    first = seen(x)
    # A rotation whose sums run in another order moves a few activations by one of 127 steps.
    torch.testing.assert_close(first, fake_quantize(x, format), rtol=0, atol=float(x.abs().max()) / 30)
    assert float((first - fake_quantize(x, format)).abs().mean()) < 1e-3 * float(x.abs().mean())
    assert seen(x) is first and seen(other) is not first
    again = seen(x)
    seen.forget()
    assert seen(x) is not again
