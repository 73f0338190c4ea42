"""Kernels are compiled beside something else, and their errors come out."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch

from mixllm.config import PROFILES
from mixllm.errors import MixllmError
from mixllm.kernels.meanwhile import compiled_meanwhile

GPU = torch.device("cuda:1")


def meanwhile(monkeypatch: pytest.MonkeyPatch, *makes: Callable[[], Any], device: torch.device = GPU) -> Any:
    monkeypatch.setattr("mixllm.kernels.cuda.many.kernels_of_many", lambda *_: list(makes))
    return compiled_meanwhile([(64, 128)], PROFILES["fast"], 100, torch.bfloat16, device)


def test_on_another_thread_and_done_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, done = threading.Event(), list[str]()

    def make() -> None:
        assert begun.wait(20)
        done.append(threading.current_thread().name)

    with meanwhile(monkeypatch, make, make):
        assert not done
        begun.set()
    assert len(done) == 2 and all(name.startswith("mixllm-compile") for name in done)


def test_an_error_is_raised_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> None:
        raise MixllmError("compiling hopper.cu for sm_90a: no space")

    reached = False
    with pytest.raises(MixllmError, match="compiling hopper"), meanwhile(monkeypatch, fails):
        reached = True
    assert reached


def test_an_error_inside_waits_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    let_go = threading.Event()
    with pytest.raises(KeyboardInterrupt), meanwhile(monkeypatch, lambda: let_go.wait(20)):
        raise KeyboardInterrupt
    let_go.set()


def test_a_cpu_has_nothing_to_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    with meanwhile(monkeypatch, lambda: pytest.fail("compiled"), device=torch.device("cpu")):
        pass
