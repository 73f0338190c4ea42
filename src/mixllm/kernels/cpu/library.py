"""The shared library of the CPU kernels: finding it, and giving it torch's threads.

Its interface is plain C, so one build serves every version of torch and of Python. torch's functions
for threads are C too (torch/csrc/stable/c/shim.h): the kernels run in the pool that torch.set_num_threads
sizes.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_char_p, c_int32, c_int64, c_void_p
from functools import cache
from pathlib import Path

import torch

from mixllm.errors import MixllmError

LIBRARY = Path(__file__).parent / "mixllm_cpu.so"


class Weight(ctypes.Structure):
    """MixllmWeight of csrc/weight.h."""

    _fields_ = [
        *((name, c_void_p) for name in ("codes4", "codes8", "zeros4", "factors4", "scales4", "scales8")),
        *((name, c_void_p) for name in ("row_scales", "channels")),
        *((name, c_int64) for name in ("inputs", "outputs", "blocks4", "blocks8", "zero_groups")),
        ("activation_width", c_int64),
        *((name, c_int32) for name in ("scale_kind", "scale_kind8", "rotate")),
    ]


class Call(ctypes.Structure):
    """MixllmCall of csrc/weight.h."""

    _fields_ = [
        ("x", c_void_p), ("y", c_void_p), ("bias", c_void_p),
        ("tokens", c_int64), ("pitch", c_int64), ("type", c_int32), ("isa", c_int32),
    ]  # fmt: skip


def available() -> bool:
    """Whether the kernels were built when mixllm was installed."""
    return LIBRARY.exists()


@cache
def load() -> ctypes.CDLL:
    """Raises MixllmError where the library is missing or not made for this machine."""
    try:
        library = ctypes.CDLL(str(LIBRARY))
    except OSError as error:
        raise MixllmError(f"CPU kernels: {error}; install mixllm where a C++ compiler is present") from None
    library.mixllm_isa_name.restype = c_char_p
    library.mixllm_isa_name.argtypes = [c_int32]
    library.mixllm_linear.restype = c_int32
    library.mixllm_linear.argtypes = [POINTER(Weight), POINTER(Call)]
    library.mixllm_decode.restype = c_int32
    library.mixllm_decode.argtypes = [c_void_p]
    for name in ("dense", "best_grid", "round_columns", "rotate", "fixed_rows", "fixed"):
        step = getattr(library, f"mixllm_{name}")
        step.restype = None
        step.argtypes = [c_void_p]
    for pack in (library.mixllm_pack4, library.mixllm_pack8):
        pack.argtypes = [c_void_p, c_int64, c_int64, c_void_p]
        pack.restype = None
    (threads,) = (Path(torch.__file__).parent / "lib").glob("libtorch_cpu.*")
    pool = ctypes.CDLL(str(threads))
    library.mixllm_use_threads(
        ctypes.cast(pool.torch_parallel_for, c_void_p), ctypes.cast(pool.torch_get_num_threads, c_void_p)
    )
    return library


@cache
def instruction_sets() -> tuple[str, ...]:
    """Those that this machine has and the library was built for, best first; the last is "portable"."""
    names: list[str] = []
    while name := load().mixllm_isa_name(len(names)):
        names.append(name.decode())
    return tuple(names)
