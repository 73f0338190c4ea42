import pytest
import torch

from mixllm.confined import Bound
from mixllm.memory import host_bytes
from mixllm.needs import limits
from tests.needs.machine import GB, machine

CPU = torch.device("cpu")


def test_a_container_has_no_more_than_its_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, 120)
    assert limits.total(CPU) == 120 * GB and abs(limits.free() - host_bytes() - 120 * GB) < GB
    monkeypatch.setattr(limits, "bounds", lambda: [Bound(200 * GB, 90 * GB), Bound(16 * GB, 12 * GB)])
    assert limits.total(CPU) == 16 * GB
    assert abs(limits.free() - host_bytes() - 12 * GB) < GB
