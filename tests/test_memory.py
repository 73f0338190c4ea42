import gc
from types import SimpleNamespace

import pytest
import torch

from mixllm import memory


def test_own_memory_is_what_tensors_take():
    gc.collect()  # of other tests
    before = memory.host_bytes()
    held = torch.ones(300_000_000, dtype=torch.uint8)
    assert 200_000_000 < memory.host_bytes() - before < 400_000_000
    del held


def test_without_a_gpu_there_is_no_peak(monkeypatch: pytest.MonkeyPatch):
    assert memory.gpu_peak_bytes() == 0
    cuda = SimpleNamespace(
        is_initialized=lambda: True, device_count=lambda: 2, max_memory_allocated=[0, 7].__getitem__
    )
    monkeypatch.setitem(memory.sys.modules, "torch", SimpleNamespace(cuda=cuda))  # type: ignore[attr-defined, arg-type]
    assert memory.gpu_peak_bytes() == 7


def test_where_the_system_does_not_tell_files_count_too(monkeypatch: pytest.MonkeyPatch, tmp_path):
    monkeypatch.setattr(memory, "_STATUS", tmp_path / "none")
    assert 10**7 < memory.host_bytes() < 10**12


def test_segments_grow_unless_the_user_said_something(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("PYTORCH_CUDA_ALLOC_CONF", raising=False)
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "max_split_size_mb:64")
    memory.grow_segments()
    assert memory.os.environ["PYTORCH_ALLOC_CONF"] == "max_split_size_mb:64"  # type: ignore[attr-defined]
    monkeypatch.delenv("PYTORCH_ALLOC_CONF")
    memory.grow_segments()
    assert memory.os.environ["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"  # type: ignore[attr-defined]
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "garbage_collection_threshold:0.9")
    monkeypatch.delenv("PYTORCH_ALLOC_CONF")
    memory.grow_segments()
    assert "PYTORCH_ALLOC_CONF" not in memory.os.environ  # type: ignore[attr-defined]


def test_a_gpu_gives_back_what_is_held_beyond_a_bound(monkeypatch: pytest.MonkeyPatch):
    done: list[str] = []
    cuda = SimpleNamespace(
        memory_reserved=lambda device: 23,
        synchronize=lambda device: done.append("waited"),
        empty_cache=lambda: done.append("given back"),
    )
    monkeypatch.setitem(memory.sys.modules, "torch", SimpleNamespace(cuda=cuda))  # type: ignore[attr-defined, arg-type]
    memory.trim(torch.device("cpu"))
    memory.trim(torch.device("cuda"), 23)
    assert not done
    memory.trim(torch.device("cuda"), 22)
    memory.trim(torch.device("cuda"))
    assert done == ["waited", "given back"] * 2


def test_a_cpu_gives_back_what_lies_between_tensors():
    before, pieces = memory.host_bytes(), [torch.ones(100_000, dtype=torch.uint8) for _ in range(2_000)]
    last = pieces[-1]
    pieces.clear()
    memory.release(torch.device("cpu"))
    assert memory.host_bytes() - before < 50_000_000
    del last


@pytest.mark.parametrize(
    ("allocated", "coming", "gives"), [(20, 3, False), (20, 4, True), (10, 6, False), (10, 7, True)]
)
def test_memory_is_given_back_where_large_tensors_would_find_no_place(
    monkeypatch: pytest.MonkeyPatch, allocated: int, coming: int, gives: bool
):
    given = []
    cuda = SimpleNamespace(
        memory_reserved=lambda _: 22,
        memory_allocated=lambda _: allocated,
        synchronize=lambda device: None,
        empty_cache=lambda: given.append(1),
    )
    monkeypatch.setitem(memory.sys.modules, "torch", SimpleNamespace(cuda=cuda))  # type: ignore[attr-defined, arg-type]
    memory.trim(torch.device("cuda"), 25, coming)
    assert bool(given) == gives
