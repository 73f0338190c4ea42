"""A GPU that is not there, for tests of what is launched on one."""

from __future__ import annotations

import ctypes
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mixllm.kernels import cuda
from mixllm.kernels.cuda import hopper, launch, many, ops, planned, quantizing, skinny


class Spy:
    """Kernels of a Hopper GPU that is not there. made: source and macros of each; given: what their driver
    gets, blocks, threads and the bytes of the arguments."""

    def __init__(self) -> None:
        self.made: list[tuple[str, dict[str, int]]] = []
        self.given: list[tuple[int, int, ctypes.Structure]] = []

    def kernel(
        self, source: str, _: str, macros: tuple[tuple[str, int], ...], *__: Any, **___: Any
    ) -> launch.Kernel:
        self.made.append((source, dict(macros)))
        made = object.__new__(launch.Kernel)
        made._driver = SimpleNamespace(CUlaunchConfig=SimpleNamespace, cuLaunchKernelEx=lambda *_: (0,))
        made._shared, made._attributes, made._handle = 0, [], None
        made._target = launch.Device(0, (9, 0), 132, 232448)
        return made


@pytest.fixture
def spy(monkeypatch: pytest.MonkeyPatch) -> Spy:
    spy, original = Spy(), launch.Kernel.launch

    def kept(
        kernel: launch.Kernel, blocks: int, threads: int, arguments: ctypes.Structure, columns: int = 1
    ) -> None:
        spy.given.append((blocks, threads, type(arguments).from_buffer_copy(arguments)))
        original(kernel, blocks, threads, arguments, columns)

    monkeypatch.setattr(launch.Kernel, "launch", kept)
    for module in (cuda, hopper, many, ops, quantizing, skinny):
        monkeypatch.setattr(module, "device", lambda _: launch.Device(0, (9, 0), 132, 232448))
    for module in (hopper, ops, quantizing):
        monkeypatch.setattr(module, "kernel", spy.kernel)
    monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())
    monkeypatch.setattr(launch, "current_stream", lambda _: 0)
    monkeypatch.setattr(planned, "_PLANS", {})
    for cached in (hopper.product, ops.product, quantizing.quantizer, quantizing.quantizer_of_many):
        cached.cache_clear()
    return spy
