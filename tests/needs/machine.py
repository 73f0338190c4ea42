"""A machine with so much memory, and models of Llama's shapes, for counts that ask no real one."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from mixllm.needs import Needs, Sizes, limits, needs

CUDA, BF16 = torch.device("cuda"), torch.bfloat16
GB = 10**9


def llama(hidden: int, wide: int, blocks: int) -> Sizes:
    small = hidden // 4
    layers = {"q": hidden, "k": small, "v": small, "o": hidden}
    block = {f"attention.{name}": (n, hidden) for name, n in layers.items()}
    block |= {"mlp.gate": (wide, hidden), "mlp.up": (wide, hidden), "mlp.down": (hidden, wide)}
    return Sizes([block] * blocks, hidden, 128256, 2 * 128256 * hidden)


def on_gpu(
    monkeypatch: pytest.MonkeyPatch, sizes: Sizes, gpu: float = 80, host: float = 120, samples: int = 128
) -> Needs:
    def memory(*_: object) -> tuple[int, int]:
        return int(gpu * GB), int(gpu * GB)

    monkeypatch.setattr(torch.cuda, "mem_get_info", memory)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda *_: 0)
    machine(monkeypatch, host)
    return needs(sizes, samples * 2048, 2048, CUDA, BF16, measured=(4, 8))


def machine(monkeypatch: pytest.MonkeyPatch, host: float) -> None:
    """With so many GB, all of them free."""
    free = SimpleNamespace(available=int(host * GB), total=int(host * GB))
    monkeypatch.setattr(limits.psutil, "virtual_memory", lambda: free)
    monkeypatch.setattr(limits, "bounds", list)
