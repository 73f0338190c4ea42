"""Whole models on a GPU: the CUDA backend, which "auto" takes there, against the reference."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

import mixllm
from mixllm.config import KERNEL_WIDTHS, PROFILES, WIDTHS, QuantConfig
from mixllm.kernels.cuda import CudaLinear, build, hopper, quantizing
from mixllm.kernels.cuda.launch import kernel
from mixllm.nn import MixLinear
from tests.format.layers import write_quantized
from tests.models import write_tiny

pytestmark = pytest.mark.gpu

SIZES = {"hidden_size": 192, "intermediate_size": 392}


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gemma3_text"])
@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("share8", [0.3, None])
def test_log_probabilities_and_text(
    tmp_path: Path, share8: float | None, profile: str, architecture: str
) -> None:
    path = write_quantized(tmp_path, architecture, PROFILES[profile], share8=share8, **SIZES)
    ours = mixllm.load(path, device="cuda")
    reference = mixllm.load(path, device="cuda", backend="reference")
    # More tokens than either the mma.sync or the wgmma path starts with.
    for length in (1, 7, 150):
        ids = torch.randint(4, 200, (3, length), device="cuda")
        with torch.no_grad():
            a, b = (model(ids).logits.log_softmax(-1) for model in (ours, reference))
        if profile == "fast":
            assert torch.equal(a, b)
        # Float sums in another order can push a later layer's activation over the border of its int8 code.
        assert float((b.exp() * (b - a)).sum(-1).mean()) < 1e-4
    layers = [m for m in ours.modules() if isinstance(m, MixLinear)]
    assert layers and all(isinstance(layer._kernel, CudaLinear) for layer in layers)
    if profile == "fast":
        texts = [
            model.generate(ids[:1, :9], max_new_tokens=6, do_sample=False, pad_token_id=0)
            for model in (ours, reference)
        ]
        assert torch.equal(*texts)


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("widths", [KERNEL_WIDTHS, WIDTHS])
def test_quantize_on_the_gpu(tmp_path: Path, widths: tuple[int, ...], profile: str) -> None:
    """The rounding walk feeds each block by the kernels."""
    write_tiny(tmp_path / "float", "llama", **SIZES)
    text = tmp_path / "text.txt"
    text.write_text("the thin hen in the inn and then the theater " * 200)
    config = QuantConfig(
        format=PROFILES[profile], widths=widths, bits=5.0, calibration=str(text), samples=6, window=48
    )
    mixllm.quantize(str(tmp_path / "float"), tmp_path / "out", config, device="cuda")
    model = mixllm.load(tmp_path / "out", device="cuda")
    with torch.no_grad():
        assert bool(torch.isfinite(model(torch.randint(4, 200, (2, 33), device="cuda")).logits).all())


def test_rounding_waits_for_no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that the walk's quantized blocks launch is compiled beside the salience."""
    write_tiny(tmp_path / "float", "llama", **SIZES)
    text = tmp_path / "text.txt"
    text.write_text("the thin hen in the inn and then the theater " * 200)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for cached in (kernel, hopper.product, quantizing.quantizer, quantizing.quantizer_of_many):
        cached.cache_clear()
    threads: list[str] = []

    def compile(source: str, macros: Mapping[str, int], arch: str) -> bytes:
        threads.append(threading.current_thread().name)
        return of_nvrtc(source, macros, arch)

    of_nvrtc = build._compile
    monkeypatch.setattr(build, "_compile", compile)
    config = QuantConfig(bits=5.0, calibration=str(text), samples=6, window=48)
    mixllm.quantize(str(tmp_path / "float"), tmp_path / "out", config, device="cuda")
    assert threads and all(name.startswith("mixllm-compile") for name in threads)
