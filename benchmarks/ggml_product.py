"""llama.cpp's products: a matrix multiplication of its library ggml, through ggml's C interface.

Weights lie in the first of the CPU's extra buffer types, as llama.cpp has it: AMX's order, or a repacked one.
Tested with libggml-python 0.20.2 of PyPI, whose wheel is built for AVX2, and with a build of its sources.
"""

from __future__ import annotations

import ctypes
from ctypes import c_bool, c_char_p, c_int, c_int64, c_size_t, c_void_p
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

F32, TYPES = 0, {"Q4_0": 2, "Q4_K": 12}
ROWS = 64  # that are quantized and repeated: times don't depend on codes


class InitParams(ctypes.Structure):
    """ggml_init_params."""

    _fields_ = [("mem_size", c_size_t), ("mem_buffer", c_void_p), ("no_alloc", c_bool)]


@cache
def library(folder: Path) -> ctypes.CDLL:
    """ggml's shared libraries in a folder, with the signatures used here."""
    for name in ("libggml-base.so", "libggml-cpu.so"):
        ctypes.CDLL(str(folder / name), ctypes.RTLD_GLOBAL)
    ggml = ctypes.CDLL(str(folder / "libggml-cpu.so"))
    pointers = {
        "ggml_init": [InitParams], "ggml_new_tensor_2d": [c_void_p, c_int, c_int64, c_int64],
        "ggml_mul_mat": [c_void_p] * 3, "ggml_new_graph": [c_void_p], "ggml_backend_cpu_init": [],
        "ggml_backend_cpu_reg": [], "ggml_backend_reg_dev_get": [c_void_p, c_size_t],
        "ggml_backend_reg_get_proc_address": [c_void_p, c_char_p],
        "ggml_backend_cpu_buffer_type": [], "ggml_backend_alloc_ctx_tensors_from_buft": [c_void_p] * 2,
    }  # fmt: skip
    for name, arguments in pointers.items():
        getattr(ggml, name).argtypes, getattr(ggml, name).restype = arguments, c_void_p
    ggml.ggml_blck_size.argtypes, ggml.ggml_blck_size.restype = [c_int], c_int64
    ggml.ggml_row_size.argtypes, ggml.ggml_row_size.restype = [c_int, c_int64], c_size_t
    ggml.ggml_quantize_chunk.argtypes = [c_int, c_void_p, c_void_p, c_int64, c_int64, c_int64, c_void_p]
    ggml.ggml_build_forward_expand.argtypes = [c_void_p] * 2
    ggml.ggml_backend_tensor_set.argtypes = [c_void_p, c_void_p, c_size_t, c_size_t]
    ggml.ggml_backend_tensor_get.argtypes = [c_void_p, c_void_p, c_size_t, c_size_t]
    ggml.ggml_backend_graph_compute.argtypes = [c_void_p] * 2
    ggml.ggml_backend_cpu_set_n_threads.argtypes = [c_void_p, c_int]
    ggml.ggml_backend_buft_name.argtypes, ggml.ggml_backend_buft_name.restype = [c_void_p], c_char_p
    ggml.ggml_cpu_init()
    return ggml


class Layer:
    """x [T, k] float32 -> y [T, n]. Its memory is never given back."""

    def __init__(self, folder: Path, kind: str, n: int, k: int, threads: int) -> None:
        self.ggml, self.n, self.k = library(folder), n, k
        self.backend = self.ggml.ggml_backend_cpu_init()
        self.ggml.ggml_backend_cpu_set_n_threads(self.backend, threads)
        space = self.context()
        self.weight = self.ggml.ggml_new_tensor_2d(space, TYPES[kind], k, n)
        assert self.ggml.ggml_backend_alloc_ctx_tensors_from_buft(space, best_buffer(self.ggml))
        size = self.ggml.ggml_row_size(TYPES[kind], k)
        rows, codes = torch.randn(ROWS, k), torch.empty(ROWS, size, dtype=torch.uint8)
        self.ggml.ggml_quantize_chunk(TYPES[kind], rows.data_ptr(), codes.data_ptr(), 0, ROWS, k, None)
        whole = codes.repeat(-(-n // ROWS), 1)[:n].contiguous()
        self.ggml.ggml_backend_tensor_set(self.weight, whole.data_ptr(), 0, whole.nbytes)
        self.graphs: dict[int, tuple[int, int, int]] = {}

    def context(self) -> int:
        space: int = self.ggml.ggml_init(InitParams(1 << 18, None, True))
        return space

    def graph(self, tokens: int) -> tuple[int, int, int]:
        space = self.context()
        x = self.ggml.ggml_new_tensor_2d(space, F32, self.k, tokens)
        y = self.ggml.ggml_mul_mat(space, self.weight, x)
        graph = self.ggml.ggml_new_graph(space)
        self.ggml.ggml_build_forward_expand(graph, y)
        plain = self.ggml.ggml_backend_cpu_buffer_type()
        assert self.ggml.ggml_backend_alloc_ctx_tensors_from_buft(space, plain)
        return graph, x, y

    def __call__(self, x: Tensor) -> Tensor:
        if len(x) not in self.graphs:
            self.graphs[len(x)] = self.graph(len(x))
        graph, input, output = self.graphs[len(x)]
        self.ggml.ggml_backend_tensor_set(input, x.data_ptr(), 0, x.nbytes)
        assert self.ggml.ggml_backend_graph_compute(self.backend, graph) == 0
        y = x.new_empty(len(x), self.n)
        self.ggml.ggml_backend_tensor_get(output, y.data_ptr(), 0, y.nbytes)
        return y


def kinds(folder: Path, k: int) -> list[str]:
    """The types that rows of k inputs fit: a type has blocks of its own size, which are not split."""
    ggml = library(folder)
    return [kind for kind, number in TYPES.items() if k % ggml.ggml_blck_size(number) == 0]


def best_buffer(ggml: ctypes.CDLL) -> int:
    """The first extra buffer type of the CPU, or the plain one."""
    registry = ggml.ggml_backend_cpu_reg()
    extra = ggml.ggml_backend_reg_get_proc_address(registry, b"ggml_backend_dev_get_extra_bufts")
    if extra:
        list_of = ctypes.CFUNCTYPE(ctypes.POINTER(c_void_p), c_void_p)(extra)
        first: int | None = list_of(ggml.ggml_backend_reg_dev_get(registry, 0))[0]
        if first:
            return first
    plain: int = ggml.ggml_backend_cpu_buffer_type()
    return plain


def described(folder: Path) -> dict[str, object]:
    """What the library was built for, and where weights lie."""
    ggml = library(folder)
    sets = ("avx2", "avx512", "avx512_vnni", "amx_int8")
    has = [name for name in sets if getattr(ggml, f"ggml_cpu_has_{name}")()]
    return {"has": has, "weights_in": ggml.ggml_backend_buft_name(best_buffer(ggml)).decode()}
