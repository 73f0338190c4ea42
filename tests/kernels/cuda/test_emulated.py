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

import pytest
import torch

from mixllm.config import PROFILES, Format
from mixllm.kernels import activations, reference
from mixllm.kernels.cuda import CudaLinear, layout, ops
from mixllm.kernels.cuda.build import SOURCES
from mixllm.kernels.cuda.launch import Device
from mixllm.kernels.cuda.tiles import Tile
from tests import shapes
from tests.kernels.cuda.weights import random_weight

# They need a C++20 compiler, as nvcc does.
pytestmark = pytest.mark.nvcc

EMULATOR = Path(__file__).with_name("emulator")


def stream(bm: int, bn: int, wm: int, wn: int, wk: int, stages: int) -> Tile:
    return Tile(bm, bn, wm, wn, wk, stages, 1, True)


# Profile, tile, rows of 4 and of 8 bits, inputs, tokens, multiprocessors: rings that go round often and
# never, tiles cut over many blocks and over none, missing rows and slots.
CASES = [
    ("fast", stream(32, 8, 2, 4, 2, 6), 70, 20, 1100, 3, 3),
    ("fast", stream(32, 8, 2, 4, 2, 2), 150, 40, 4096, 8, 1),
    ("fast", stream(16, 8, 1, 8, 1, 2), 150, 40, 2050, 1, 3),
    ("fast", stream(64, 16, 4, 2, 2, 6), 150, 40, 1100, 13, 7),
    ("fast", stream(64, 16, 4, 2, 2, 2), 10, 0, 40, 16, 132),
    ("fast", stream(64, 16, 4, 2, 2, 2), 0, 33, 900, 16, 9),
    ("fast", stream(128, 32, 4, 2, 2, 3), 90, 40, 1100, 30, 4),
    ("paper", stream(32, 16, 2, 4, 2, 2), 150, 40, 2050, 9, 3),
    ("paper", stream(64, 8, 2, 2, 1, 3), 70, 20, 1100, 3, 5),
    ("fast", Tile(64, 32, 2, 1, 2, 3, 1), 150, 40, 700, 45, 5),
    ("paper", Tile(64, 16, 2, 2, 1, 3, 1), 70, 70, 700, 20, 3),
]


def build(source: str, macros: dict[str, int], directory: Path) -> ctypes.CDLL:
    """The kernel's library; sources that say the same as the emulator's give way to those.

    macros: the kernel's, __CUDA_ARCH__, and NAMED_BARRIER, the threads that meet at one."""
    for file in [*SOURCES.iterdir(), *EMULATOR.iterdir()]:
        text = re.sub(
            r"extern __shared__ __align__\(\d+\) u8 shared\[\];",
            "u8* shared = shared_memory;",
            file.read_text(),
        )
        (directory / file.name).write_text(text)
    command = ["g++", "-O1", "-std=c++20", "-ffp-contract=off", "-pthread", "-shared", "-fPIC", "-w"]
    command += [f"-D{name}={value}" for name, value in macros.items()] + [f'-DKERNEL="{source}"']
    subprocess.run([*command, "-o", "kernel.so", "main.cc"], cwd=directory, check=True)
    return ctypes.CDLL(str(directory / "kernel.so"))


def quantized(x: torch.Tensor, format: Format) -> tuple[torch.Tensor, ...]:
    """What ops.quantize gives on a GPU."""
    codes, scales = activations.quantize_activations(x, format)
    tokens, k = codes.shape
    padded = torch.nn.functional.pad(codes, (0, -k % 128)).to(torch.int8)
    scales = torch.nn.functional.pad(scales.T, (0, -tokens % 4)).contiguous()
    return padded, scales, codes.sum(1).int(), torch.zeros(ops.FLAGS, dtype=torch.int32)


@pytest.mark.parametrize("arch", [800, 900])
@pytest.mark.parametrize(("profile", "tile", "n4", "n8", "k", "tokens", "multiprocessors"), CASES)
def test_as_the_reference(
    profile: str, tile: Tile, n4: int, n8: int, k: int, tokens: int, multiprocessors: int, arch: int,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    format = PROFILES[profile]
    weight = random_weight(n4, n8, k, format, k)
    linear = CudaLinear(layout.to_kernel_order(weight, format), format)
    there = {"__CUDA_ARCH__": arch, "NAMED_BARRIER": 32 * tile.wn}
    library = build(tile.source, {**tile.macros(), **linear.scales.macros(), **there}, tmp_path)

    def launch(blocks: int, threads: int, arguments: ctypes.Structure) -> None:
        library.emulate(blocks, threads, ctypes.byref(arguments))

    monkeypatch.setattr(ops, "product", lambda *_: SimpleNamespace(launch=launch))
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
