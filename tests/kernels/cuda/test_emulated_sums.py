"""The quantizers' unsigned codes and sums of groups for csrc/hopper_floats.cuh, on the CPU (emulator/)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mixllm.kernels import activations
from mixllm.kernels.cuda import quantizing
from mixllm.kernels.cuda.launch import Device
from tests import shapes
from tests.kernels.cuda.test_emulated import build, quantized
from tests.kernels.cuda.test_hopper import summed

pytestmark = pytest.mark.nvcc


# An even number of groups: the emulator does not let half of a warp trade by itself.
@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize(
    ("dtype", "tokens", "k"), [(torch.bfloat16, 7, 1000), (torch.float16, 9, 2200), (torch.bfloat16, 4, 2048)]
)
def test_lines(
    many: bool,
    dtype: torch.dtype,
    tokens: int,
    k: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def kernel(_: int, *named: Any) -> Any:
        source, macros = (
            ("quantize_many.cu", quantizing.many_macros)
            if many
            else ("quantize.cu", quantizing.quantizer_macros)
        )
        return build(source, "quantize", macros(*named), tmp_path)

    monkeypatch.setattr(quantizing, "quantizer_of_many" if many else "quantizer", kernel)
    for least in ("LEAST_MANY", "LEAST_MANY_SHORT"):
        monkeypatch.setattr(quantizing, least, 1 if many else 99)
    monkeypatch.setattr(quantizing, "MANY_THREADS", -(-k // 1024) * 32)
    monkeypatch.setattr(quantizing, "device", lambda _: Device(0, (9, 0) if many else (8, 0), 2, 232448))
    x = (shapes.inputs(tokens, k, 1) * 2).to(dtype)
    x[2] = 0
    out = quantizing.outputs(x, 0, True, True)
    out[0].fill_(77)
    quantizing.quantize_into(x, True, 0, *out)
    format = shapes.Format(weight_scale="group", rotation="hadamard", activation_group="token")
    assert torch.equal(out[0], summed(quantized(x, format)[0]))
    assert torch.equal(out[1][:, :tokens].T, activations.quantize_activations(x, format)[1])
