"""What is compiled for many tokens before there is a layer is what layers then launch."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mixllm.config import PROFILES
from mixllm.errors import MixllmError
from mixllm.kernels.cuda import CudaLinear, build, hopper, layout, many, ops, quantizing
from mixllm.kernels.cuda.launch import Device
from mixllm.kernels.cuda.many import kernels_of_many
from tests.kernels.cuda.conftest import Spy
from tests.kernels.cuda.weights import random_weight

Made = list[tuple[str, dict[str, int]]]


@pytest.fixture(autouse=True)
def compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "_compiler_version", lambda: (13, 0))


def compiled(spy: Spy, shapes: list[tuple[int, int]], profile: str, tokens: int, dtype: torch.dtype) -> Made:
    for cached in (hopper.product, ops.product, quantizing.quantizer, quantizing.quantizer_of_many):
        cached.cache_clear()
    spy.made.clear()
    for make in kernels_of_many(shapes, PROFILES[profile], tokens, dtype, 0):
        make()
    return list(spy.made)


@pytest.mark.parametrize("profile", ["fast", "paper"])
@pytest.mark.parametrize(("rows4", "rows8", "inputs"), [(300, 45, 1100), (256, 64, 256), (97, 0, 4224)])
@pytest.mark.parametrize("tokens", [77, 333, 4096])
def test_layers_launch_nothing_else(
    profile: str, rows4: int, rows8: int, inputs: int, tokens: int, spy: Spy
) -> None:
    format = PROFILES[profile]
    layer = CudaLinear(layout.to_kernel_order(random_weight(rows4, rows8, inputs, format, 0), format), format)
    with torch.no_grad():
        layer(torch.zeros(tokens, inputs, dtype=torch.bfloat16))
    launched = list(spy.made)
    assert {source for source, _ in launched} >= {"hopper.cu"}
    ahead = compiled(spy, [(rows4 + rows8, inputs)], profile, tokens, torch.bfloat16)
    assert all(kernel in ahead for kernel in launched)
    assert len(ahead) <= len(launched) + 1  # the tile for one more 16 rows


def test_layers_of_one_size_are_compiled_for_once(spy: Spy) -> None:
    one = compiled(spy, [(320, 256)], "fast", 500, torch.float16)
    assert compiled(spy, [(320, 256)] * 9, "fast", 500, torch.float16) == one


def test_nothing_for_as_few_tokens_as_other_kernels_take(spy: Spy) -> None:
    assert not compiled(spy, [(4096, 4096)], "fast", 1, torch.float16)


def test_a_gpu_of_another_kind(spy: Spy, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (hopper, many):
        monkeypatch.setattr(module, "device", lambda _: Device(0, (8, 0), 108, 166912))
    made = compiled(spy, [(320, 250)], "paper", 500, torch.float16)
    assert {source for source, _ in made} == {"gemm.cu", "quantize.cu"}


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> Any:
        raise MixllmError("the CUDA backend needs cuda-core and NVRTC")

    monkeypatch.setattr(build, "_compiler_version", missing)
    with pytest.raises(MixllmError, match="needs cuda-core"):
        kernels_of_many([(320, 256)], PROFILES["fast"], 500, torch.float16, 0)
