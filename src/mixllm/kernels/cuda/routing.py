"""Where tokens go when they are put in the order of their experts (csrc/route.cu).

An expert's tokens begin at a multiple of 4, which is where scales can be copied 16 bytes at a time. How many
an expert has stays on the GPU: sizes depend on the number of tokens alone, so nothing is awaited and a CUDA
graph can hold all of it.
"""

from __future__ import annotations

import ctypes
from ctypes import c_int, c_void_p

import torch
from torch import Tensor

from mixllm.kernels.cuda.launch import Kernel, kernel
from mixllm.kernels.cuda.operator import fake, operator

THREADS = 1024


class _Routes(ctypes.Structure):
    _fields_ = [
        ("ids", c_void_p), ("token", c_void_p), ("place", c_void_p), ("ranges", c_void_p),
        ("count", c_int), ("top", c_int), ("experts", c_int), ("places", c_int),
    ]  # fmt: skip


@operator("mixllm::route")
def route(ids: Tensor, experts: int) -> tuple[Tensor, Tensor, Tensor]:
    """ids [T, k], integers: each token's experts, in 0 .. experts - 1.

    There are P = T k + 3 min(E, T k) places.

    token int64 [P]: which token lies in a place (0 in an empty one); place int64 [T, k]: where a token
    lies for each of its experts; ranges int32 [E, 2]: first place and number of an expert's tokens.
    """
    ids = ids.long().contiguous()
    token, place, ranges = outputs = _outputs(ids, experts)
    with torch.cuda.device(ids.device):
        router(ids.device.index, experts).launch(1, THREADS, arguments(ids, *outputs))
    return token, place, ranges


@fake("mixllm::route")
def _outputs(ids: Tensor, experts: int) -> tuple[Tensor, Tensor, Tensor]:
    places = ids.numel() + 3 * torch.sym_min(experts, ids.numel())
    return (
        ids.new_empty((places,), dtype=torch.int64),
        ids.new_empty(ids.shape, dtype=torch.int64),
        ids.new_empty((experts, 2), dtype=torch.int32),
    )


def arguments(ids: Tensor, token: Tensor, place: Tensor, ranges: Tensor) -> _Routes:
    tensors = (ids.data_ptr(), token.data_ptr(), place.data_ptr(), ranges.data_ptr())
    return _Routes(*tensors, ids.numel(), ids.shape[1], len(ranges), len(token))


def router(index: int, experts: int) -> Kernel:
    return kernel("route.cu", "route", (("EXPERTS", -(-experts // 64) * 64),), index)
