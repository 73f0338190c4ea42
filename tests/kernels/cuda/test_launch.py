"""What is asked of the driver, with one that only takes notes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import MagicMock

import pytest
import torch

from mixllm.kernels.cuda.launch import Device, Kernel


def test_clusters_are_counted_on_the_kernels_own_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever is current: a layer of a model on several GPUs is prepared while the first one is."""
    current, asked = [0], []

    @contextmanager
    def on(index: int) -> Iterator[None]:
        current.append(index)
        yield
        current.pop()

    def clusters(*_: object) -> tuple[int, int]:
        asked.append(current[-1])
        return 0, 33

    monkeypatch.setattr(torch.cuda, "device", on)
    kernel = object.__new__(Kernel)
    kernel._target, kernel._handle, kernel._function = Device(1, (9, 0), 132, 232448), 0, 0
    kernel._driver = MagicMock(cuOccupancyMaxActiveClusters=clusters)
    kernel._driver.cuKernelSetAttribute.return_value = (0,)
    assert kernel.blocks_alone(4, 320) == 132
    assert asked == [1]
    assert kernel.blocks_alone(1, 320) == 132 and asked == [1]
