"""What memory there is, and what of it a process takes before any work."""

from __future__ import annotations

import psutil
import torch

from mixllm.blocks.upload import STAGED
from mixllm.confined import bounds
from mixllm.memory import host_bytes
from mixllm.torchrun import here

# Of what is free when a run starts, it takes this share at most.
SHARE = 0.9
# Python, torch, transformers, a tokenizer and text before any weight; what CUDA and copies to it add to that
# in host memory, and NCCL where there are several processes.
BASE_HOST, CUDA_HOST, NCCL_HOST = 450 * 10**6, 1000 * 10**6 + STAGED, 350 * 10**6
# What malloc holds, on a CPU, of pieces too small to be given back to the system.
HELD = 64 * 10**6


def total(device: torch.device) -> int:
    """Bytes of memory where the model runs, of which this process may have some."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    return int(min([psutil.virtual_memory().total, *(bound.total for bound in bounds())]) // here())


def bound(device: torch.device) -> int:
    """Bytes that can be had where the model runs."""
    if device.type == "cuda":
        unused, _ = torch.cuda.mem_get_info(device)
        return int(SHARE * (unused + torch.cuda.memory_reserved(device)))
    return int(SHARE * free()) - BASE_HOST - HELD


def free() -> int:
    """Bytes of host memory that this process may have; what it holds already is its to use."""
    available = min([psutil.virtual_memory().available, *(bound.free for bound in bounds())])
    return int(available // here() + host_bytes())


def cuda_host() -> int:
    """Bytes of host memory that CUDA takes in this process."""
    return CUDA_HOST + NCCL_HOST * (here() > 1)
