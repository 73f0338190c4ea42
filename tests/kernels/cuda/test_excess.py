"""What sums of unsigned operands have too much, by the definition from the stored layer."""

from __future__ import annotations

import pytest
import torch

from mixllm.config import Format
from mixllm.format.pack import unpack_nibbles
from mixllm.kernels.cuda.excess import excess
from mixllm.kernels.cuda.layout import to_kernel_order
from tests.kernels.cuda.weights import random_weight


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize(("n4", "n8"), [(1050, 18), (20, 0), (0, 33)])
def test_of_rows(n4: int, n8: int, half: bool) -> None:
    """Three groups, the last shorter: inputs behind it have weight 0."""
    format = Format(weight_scale="group", activation_group="token")
    weight = random_weight(n4, n8, 300, format, 1, half=half)
    found = excess(to_kernel_order(weight, format))
    eights = torch.nn.functional.pad(weight.codes8.int(), (0, 84)) + 128
    fours = torch.nn.functional.pad(unpack_nibbles(weight.codes4, 300).int(), (0, 84))
    fours[:, 300:] = unpack_nibbles(weight.zeros4, 3)[:, -1:].int()
    first = 0
    for codes, scales, most in ((eights, weight.scales8, 255), (fours, weight.scales4, 15)):
        sums, s = codes.view(-1, 3, 128).sum(2), scales.double()
        expected = s[:, 0] * sums[:, 0] - s[:, 1] * (128 * most - sums[:, 1]) + s[:, 2] * sums[:, 2]
        own = found[first : first + len(codes)].double()
        torch.testing.assert_close(own, 128 * expected, rtol=1e-6, atol=1e-6)
        first += -(-len(codes) // 16) * 16
    assert len(found) == first
