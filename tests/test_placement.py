from types import SimpleNamespace

import pytest
import torch

from mixllm.errors import MixllmError
from mixllm.placement import pick_device, pick_dtype


def test_auto_is_a_gpu_where_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert pick_device("auto") == torch.device("cuda")


def test_of_processes_that_torchrun_starts_each_has_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    told = {"RANK": "7", "LOCAL_RANK": "3", "LOCAL_WORLD_SIZE": "4", "MASTER_ADDR": "a", "MASTER_PORT": "1"}
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    assert pick_device("auto") == torch.device("cuda")
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert pick_device("auto") == pick_device("cuda") == torch.device("cuda:3")
    assert pick_device("cuda:1") == torch.device("cuda:1") and pick_device("cpu") == torch.device("cpu")


def test_named_devices(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(MixllmError, match="device: cuda:2: there are 2 CUDA devices"):
        pick_device("cuda:2")
    for name in ("gpu9", "mps", "meta", "xpu", "cpu:1", "cuda:-1", ""):
        with pytest.raises(MixllmError, match=f"device: {name} is unknown"):
            pick_device(name)


def test_dtype_auto_is_the_models_own_on_a_gpu_and_float32_on_a_cpu():
    model = SimpleNamespace(dtype=torch.bfloat16)
    assert pick_dtype("auto", torch.device("cpu"), model) == torch.float32
    assert pick_dtype("auto", torch.device("cuda"), model) == torch.bfloat16
    assert pick_dtype("auto", torch.device("cuda"), SimpleNamespace(dtype=None)) == torch.float32
    assert pick_dtype("float16", torch.device("cpu"), model) == torch.float16
    with pytest.raises(MixllmError, match="dtype: int8 is unknown"):
        pick_dtype("int8", torch.device("cpu"), model)
