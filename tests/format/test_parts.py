import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.format.layers import rounded_layer
from tests.shapes import FORMATS, in_features, out_features, seeds

from mixllm.config import PROFILES, Format
from mixllm.errors import MixllmError
from mixllm.format.mixed import MixedWeight
from mixllm.format.pack import pack, shapes, unpack
from mixllm.format.parts import join, select_channels, select_inputs
from mixllm.format.values import check_values

formats = st.sampled_from(FORMATS)
shares = st.sampled_from([0.0, 0.3, 1.0])


def dense(weight: MixedWeight, format: Format) -> torch.Tensor:
    """float32 [N, K]; the part is a sound layer of the format too."""
    n4, n8 = len(weight.codes4), len(weight.codes8)
    for name, (shape, dtypes) in shapes(format, {4: n4, 8: n8}, weight.in_features).items():
        tensor = weight.tensors()[name]
        assert tensor.shape == shape and tensor.dtype in dtypes, name
    assert check_values(weight.tensors(), format, weight.in_features) is None
    return unpack(weight, format).dequantize()


@given(formats, out_features, in_features, shares, seeds)
def test_channels_in_any_order(format: Format, n: int, k: int, share8: float, seed: int) -> None:
    weight = pack(rounded_layer(format, n, k, share8, seed), format)
    channels = torch.randperm(n, generator=torch.Generator().manual_seed(seed))[: (n + 1) // 2]
    assert torch.equal(dense(select_channels(weight, channels), format), dense(weight, format)[channels])


@given(formats, out_features, in_features, shares, seeds, st.integers(0, 8))
def test_inputs_between_group_borders(
    format: Format, n: int, k: int, share8: float, seed: int, group: int
) -> None:
    weight = pack(rounded_layer(format, n, k, share8, seed), format)
    border = 128 * (group % format.groups(k))
    for start, stop in ((0, border), (border, k)):
        if start < stop:
            part = select_inputs(weight, format, start, stop)
            assert torch.equal(dense(part, format), dense(weight, format)[:, start:stop])


@given(formats, st.lists(st.tuples(out_features, shares), min_size=1, max_size=3), in_features, seeds)
def test_layers_one_after_the_other(
    format: Format, layers: list[tuple[int, float]], k: int, seed: int
) -> None:
    weights = [pack(rounded_layer(format, n, k, share8, seed), format) for n, share8 in layers]
    assert torch.equal(dense(join(weights), format), torch.cat([dense(weight, format) for weight in weights]))


def test_scales_of_two_precisions_meet_in_the_wider() -> None:
    format = PROFILES["paper"]
    halves = pack(rounded_layer(format, 5, 200), format)
    floats = pack(rounded_layer(format, 5, 200, size=1e-6), format)
    assert halves.scales4.dtype == torch.float16 and floats.scales4.dtype == torch.float32
    joined = dense(join([halves, floats]), format)
    assert torch.equal(joined, torch.cat((dense(halves, format), dense(floats, format))))


@pytest.mark.parametrize(("start", "stop"), [(0, 64), (64, 300), (128, 200), (128, 128), (0, 301)])
def test_a_cut_inside_a_group_is_refused(start: int, stop: int) -> None:
    format = PROFILES["fast"]
    weight = pack(rounded_layer(format, 3, 300), format)
    with pytest.raises(MixllmError, match=f"inputs {start} to {stop - 1} of 300"):
        select_inputs(weight, format, start, stop)
