"""What is done to a rounded layer as a whole."""

from __future__ import annotations

import torch
from tests.format.layers import rounded_layer

from mixllm.config import PROFILES
from mixllm.format.rounded import LEAST_HALF, MOST_HALF


def test_scaled_halves_stay_normal_and_finite() -> None:
    """Beyond, a float16 is subnormal, with few bits, or infinite; what was float32 may go there."""
    made = rounded_layer(PROFILES["paper"], 4, 128)
    scales = torch.tensor([[2 * LEAST_HALF], [0.75 * MOST_HALF], [1e-6], [0.5]]).half().float()
    scales[2] = 1.234567e-6
    made.scales.copy_(scales)
    found = made.scaled(torch.tensor([0.25, 2.0, 0.5, 1 + 2**-14])).scales[:, 0]
    assert found.tolist() == [LEAST_HALF, MOST_HALF, float(scales[2] * 0.5), 0.5]
