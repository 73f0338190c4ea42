"""Who computes a layer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mixllm import kernels
from mixllm.config import PROFILES, Format
from mixllm.errors import MixllmError
from mixllm.format.pack import pack
from mixllm.kernels import cpu
from mixllm.kernels.activations import fake_quantize
from mixllm.kernels.cpu import library
from mixllm.kernels.reference import ReferenceLinear
from tests import shapes
from tests.format.layers import layer_of_all_widths
from tests.kernels.test_reference import rounded

FORMAT = Format()
WEIGHT = pack(rounded(FORMAT, 9, 200, 0.3, 1), FORMAT)


def test_auto_takes_the_cpus_kernels() -> None:
    assert isinstance(kernels.prepare(WEIGHT, FORMAT), cpu.CpuLinear)
    assert isinstance(kernels.prepare(WEIGHT, FORMAT, "reference"), ReferenceLinear)


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_rows_of_all_widths_run_with_their_own_weights(profile: str, backend: kernels.Backend) -> None:
    format = PROFILES[profile]
    layer = layer_of_all_widths(format, 37, 300, seed=3)
    x = shapes.inputs(5, 300, seed=4)
    y = kernels.prepare(pack(layer, format), format, backend)(x)
    expected = fake_quantize(x, format) @ layer.dequantize().T
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_without_the_library_auto_warns_once_and_cpu_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "LIBRARY", tmp_path / "mixllm_cpu.so")
    kernels._warn_of_slow_layers.cache_clear()
    library.load.cache_clear()
    library.instruction_sets.cache_clear()
    with pytest.warns(UserWarning, match="installed without its CPU kernels") as told:
        for _ in range(3):
            assert isinstance(kernels.prepare(WEIGHT, FORMAT), ReferenceLinear)
    assert len(told) == 1
    with pytest.raises(MixllmError, match="install mixllm where a C"):
        kernels.prepare(WEIGHT, FORMAT, "cpu")


def test_a_weight_that_is_elsewhere_is_refused() -> None:
    elsewhere = {name: tensor.to("meta") for name, tensor in WEIGHT.tensors().items()}
    with pytest.raises(MixllmError, match="the weight is on meta; move the model to the CPU"):
        kernels.prepare(type(WEIGHT)(200, **elsewhere), FORMAT, "cpu")
