"""The product kernels' own source, compiled for the CPU (emulator/) and run against the reference.

This checks indices, schedules, the ring's order and the arithmetic where there is no GPU; it says nothing of
timing and of the order of memory.
"""

from __future__ import annotations

import ctypes
import re
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mixllm.config import PROFILES, Format
from mixllm.kernels import activations, reference
from mixllm.kernels.cuda import CudaLinear, layout, ops, quantizing
from mixllm.kernels.cuda.build import SOURCES
from mixllm.kernels.cuda.launch import Device
from mixllm.kernels.cuda.tiles import Tile
from tests import shapes
from tests.kernels.cuda.inverses import untiled
from tests.kernels.cuda.weights import random_weight

# They need a C++20 compiler, as nvcc does.
pytestmark = pytest.mark.nvcc

EMULATOR = Path(__file__).with_name("emulator")


def stream(bm: int, bn: int, wm: int, wn: int, wk: int, stages: int) -> Tile:
    return Tile(bm, bn, wm, wn, wk, stages, 1, True)


# Profile, tile, rows of 4 and of 8 bits, inputs, tokens, multiprocessors: rings that go round often and
# never, tiles cut over many blocks and over none, missing rows and slots.
CASES = [
    ("fast", stream(64, 8, 2, 8, 1, 3), 150, 40, 1100, 5, 3),
    ("fast", stream(32, 8, 2, 4, 2, 6), 70, 20, 1100, 3, 3),
    ("fast", stream(32, 8, 2, 4, 2, 2), 150, 40, 4096, 8, 1),
    ("fast", stream(16, 8, 1, 8, 1, 2), 150, 40, 2050, 1, 3),
    ("fast", stream(64, 16, 4, 2, 2, 6), 150, 40, 1100, 13, 7),
    ("fast", stream(64, 16, 4, 2, 2, 2), 10, 0, 40, 16, 132),
    ("fast", stream(64, 16, 4, 2, 2, 2), 0, 33, 900, 16, 9),
    ("fast", stream(128, 16, 2, 2, 2, 3), 90, 40, 1100, 15, 4),
    ("paper", stream(32, 16, 2, 4, 2, 2), 150, 40, 2050, 9, 3),
    ("paper", stream(64, 8, 2, 2, 1, 3), 70, 20, 1100, 3, 5),
    ("fast", Tile(64, 32, 2, 1, 2, 3, 1), 150, 40, 700, 45, 5),
    ("paper", Tile(64, 16, 2, 2, 1, 3, 1), 70, 70, 700, 20, 3),
]


def build(source: str, entry: str, macros: dict[str, int], directory: Path, arch: int = 800) -> Any:
    """A launch of the kernel as launch.Kernel's; the emulator's files stand for csrc's of the same name."""
    for file in [*SOURCES.iterdir(), *EMULATOR.iterdir()]:
        text = file.read_text()
        text = re.sub(r"extern __shared__ .* u8 shared\[\];", "u8* shared = shared_memory + 1024;", text)
        (directory / file.name).write_text(text)
    given = {"NAMED_BARRIER": 32 * macros.get("WN", 1), **macros, "__CUDA_ARCH__": arch, "ENTRY": entry}
    given["KERNEL"] = f'"{source}"'
    # Without unique symbols, or kernels of other sizes would share their arrays.
    command = ["g++", "-O1", "-std=c++20", "-ffp-contract=off", "-fno-gnu-unique", "-pthread"]
    command += ["-shared", "-fPIC", "-w"]
    command += [f"-D{name}={value}" for name, value in given.items()]
    subprocess.run([*command, "-o", "kernel.so", "main.cc"], cwd=directory, check=True)
    library = ctypes.CDLL(str(directory / "kernel.so"))

    def launch(blocks: int, threads: int, arguments: ctypes.Structure, columns: int = 1) -> None:
        library.emulate(blocks, columns, threads, ctypes.byref(arguments))

    return SimpleNamespace(launch=launch)


def quantized(x: torch.Tensor, format: Format) -> tuple[torch.Tensor, ...]:
    """What ops.quantize gives on a GPU."""
    codes, scales = activations.quantize_activations(x, format)
    tokens, k = codes.shape
    padded = torch.nn.functional.pad(codes, (0, -k % 128)).to(torch.int8)
    scales = torch.nn.functional.pad(scales.T, (0, -tokens % 4)).contiguous()
    return padded, scales, codes.sum(1).int(), torch.zeros(quantizing.FLAGS, dtype=torch.int32)


@pytest.mark.parametrize("arch", [800, 900])
@pytest.mark.parametrize(("profile", "tile", "n4", "n8", "k", "tokens", "multiprocessors"), CASES)
def test_product(
    profile: str, tile: Tile, n4: int, n8: int, k: int, tokens: int, multiprocessors: int, arch: int,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    format = PROFILES[profile]
    weight = random_weight(n4, n8, k, format, k)
    linear = CudaLinear(layout.to_kernel_order(weight, format), format)
    kernel = build(tile.source, "mixed_gemm", {**tile.macros(), **linear.scales.macros()}, tmp_path, arch)
    monkeypatch.setattr(ops, "product", lambda *_: kernel)
    monkeypatch.setattr(ops, "device", lambda _: Device(0, (arch // 100, 0), multiprocessors, 232448))
    x, bias = shapes.inputs(tokens, k, 1), torch.randn(n4 + n8)
    y = torch.full((tokens, n4 + n8), 7777.0)
    arguments = quantized(x, format)
    ops.gemm_into(y, *arguments, linear.tensors, bias, linear.scales, linear.group, tile)
    expected = reference.ReferenceLinear(weight, format)(x, bias)
    assert not arguments[3].any(), "flags are left as they were"
    if profile == "fast":
        assert torch.equal(y, expected)
    else:
        assert (y - expected).norm() / expected.norm() < 1e-6


@pytest.mark.parametrize(
    ("fused", "dtype", "profile", "tokens", "k"),
    [
        (0, torch.float16, "paper", 3, 576),
        (0, torch.float32, "fast", 5, 1100),
        (0, torch.bfloat16, "fast", 1, 29000),
        (1, torch.float16, "fast", 5, 1100),
        (1, torch.bfloat16, "paper", 3, 576),
        (2, torch.bfloat16, "fast", 5, 1100),
        (2, torch.float32, "paper", 3, 576),
    ],
)
def test_quantizer(
    fused: int, dtype: torch.dtype, profile: str, tokens: int, k: int,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    format = PROFILES[profile]
    rotate, group = format.rotation == "hadamard", 0 if profile == "fast" else 128

    def kernel(_: int, *named: Any) -> Any:
        return build("quantize.cu", "quantize", quantizing.quantizer_macros(*named), tmp_path)

    monkeypatch.setattr(quantizing, "quantizer", kernel)
    monkeypatch.setattr(quantizing, "device", lambda _: Device(0, (8, 0), 1, 166912))
    both = (shapes.inputs(tokens, 2 * k, 1) * 2).to(dtype)
    x, other = both[:, :k], both[:, k:]
    if tokens > 3:
        x[3, 7] = torch.nan
    expected, what = x, None
    if fused == 1:
        weight = other[0].contiguous()
        norm = (x.float().pow(2).mean(1, keepdim=True) + 1e-5).rsqrt()
        expected, what = (x.float() * norm).to(dtype) * weight, quantizing.Fused(1, weight, 1e-5)
    elif fused == 2:
        expected, what = torch.nn.functional.silu(x) * other, quantizing.Fused(2, other)
    out = quantizing.outputs(x, group)
    out[3].fill_(7)
    quantizing.quantize_into(x, rotate, group, *out, what)
    codes, scales = activations.quantize_activations(expected, format)
    assert not out[3].any(), "flags are cleared"
    assert not out[0][:, k:].any()
    if group == 0:
        assert torch.equal(out[2], out[0].sum(1).int())
    # Where a sum has another order a value's last bit may differ, and seldom a code.
    apart = (out[0][:, :k].float() - codes).abs()
    assert apart.max() <= (2 if fused else 0)
    assert (apart > 0).float().mean() < 0.02
    tolerance = 1e-2 if fused else 0
    torch.testing.assert_close(out[1][:, :tokens].T, scales, rtol=tolerance, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    ("dtype", "change", "tokens", "k"),
    [
        (torch.bfloat16, {}, 7, 1000),
        (torch.float16, {"activation_group": 128, "rotation": "none"}, 5, 576),
        (torch.float16, {"activation_group": 512}, 5, 1104),
        (torch.bfloat16, {"activation_group": 256}, 4, 1032),
    ],
)
def test_quantizer_of_many(
    dtype: torch.dtype, change: dict[str, Any], tokens: int, k: int, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Two blocks, so that each goes through several tokens."""
    format = PROFILES["fast"].model_copy(update=change)
    group = 0 if format.activation_group == "token" else format.activation_group

    def kernel(_: int, *named: Any) -> Any:
        return build("quantize_many.cu", "quantize", quantizing.many_macros(*named), tmp_path)

    monkeypatch.setattr(quantizing, "quantizer_of_many", kernel)
    for least in ("LEAST_MANY", "LEAST_MANY_SHORT"):
        monkeypatch.setattr(quantizing, least, 1)
    monkeypatch.setattr(quantizing, "MANY_THREADS", -(-k // 1024) * 32)
    monkeypatch.setattr(quantizing, "device", lambda _: Device(0, (9, 0), 2, 232448))
    x = (shapes.inputs(tokens, k, 1) * 2).to(dtype)
    x[3, 7], x[2] = torch.nan, 0
    out = quantizing.outputs(x, group, True)
    out[3].fill_(7)
    quantizing.quantize_into(x, format.rotation == "hadamard", group, *out)
    codes, scales = activations.quantize_activations(x, format)
    given = untiled(out[0])
    assert not out[3].any(), "flags are cleared"
    assert not given[:, k:].any()
    assert torch.equal(given[:, :k].float(), codes)
    assert torch.equal(out[1][:, :tokens].T.nan_to_num(-1), scales.nan_to_num(-1))
    if group == 0:
        assert torch.equal(out[2], codes.sum(1).int())
