"""GPTQ by kernels on a GPU against the plain walk on a CPU."""

from __future__ import annotations

import pytest

from mixllm.config import PROFILES, QuantConfig
from mixllm.format.rounded import Rounded
from mixllm.rotation import rotate
from mixllm.rounding import factor_of, round_rows
from tests import shapes

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize(("n", "k"), [(1, 40), (333, 712), (2048, 1024)])
def test_a_gpu_rounds_as_a_cpu_does(profile: str, n: int, k: int) -> None:
    weight, bits = shapes.weight(n, k, 3), shapes.any_widths(n, 4)
    config = QuantConfig(format=PROFILES[profile], sweeps=0)
    x = shapes.inputs(4 * k, k, 5)
    hessian = x.T @ x
    plain = round_rows(weight, bits, config, factor_of(hessian.clone(), config, "layer"))
    factor = factor_of(hessian.cuda(), config, "layer")
    found = round_rows(weight.cuda(), bits.cuda(), config, factor)
    rotated = config.format.rotation == "hadamard"

    def off(rounded: Rounded) -> float:
        error = rounded.dequantize().cpu() - (rotate(weight) if rotated else weight)
        return float(((error @ factor.hessian.cpu()) * error).sum())

    # A sum in another order can move a value across the border between two codes, and then those after it.
    assert float((found.codes.cpu() != plain.codes).float().mean()) < 0.03
    assert off(found) == pytest.approx(off(plain), rel=2e-2)
