"""The same layers by cuBLAS, by torch's int8 and fp8 products, and by humming-kernels where that is there."""

from __future__ import annotations

import copy
import sys
import traceback
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import get_context
from typing import Any

import torch
from timing import copies_needed, timed

Times = Iterator[tuple[str, int, float]]

# humming's own spelling; weights have groups of 128, int8 activations one scale a token.
HUMMING = {"humming_w4a8_int8": {"dtype": "int8"}, "humming_w4a16": None}


def humming_version() -> str:
    """Empty where it is not installed."""
    try:
        return version("humming-kernels")
    except PackageNotFoundError:
        return ""


def time_cublas(n: int, k: int, tokens: list[int]) -> Times:
    """(impl, tokens, microseconds) of the bf16 product that all speed-ups are over."""
    dense = [torch.randn(n, k, dtype=torch.bfloat16, device="cuda")]
    dense += [dense[0].clone() for _ in range(copies_needed(n * k * 2) - 1)]
    for t in tokens:
        x = torch.randn(t, k, dtype=torch.bfloat16, device="cuda")
        yield "cublas_bf16", t, timed([lambda w=w, x=x: torch.nn.functional.linear(x, w) for w in dense])


def time_torch(n: int, k: int, tokens: list[int]) -> Times:
    """torch._int_mm and torch._scaled_mm (fp8, one scale a row and a token), activations ready."""
    bytes_ = [torch.randint(-127, 128, (n, k), dtype=torch.int8, device="cuda")]
    bytes_ += [bytes_[0].clone() for _ in range(copies_needed(n * k) - 1)]
    eights = [(b.float() / 64).to(torch.float8_e4m3fn) for b in bytes_]
    row = torch.ones(1, n, device="cuda")
    for t in tokens:
        x8 = torch.randint(-127, 128, (t, k), dtype=torch.int8, device="cuda")
        if t > 16:  # it takes no fewer
            yield "torch_int_mm", t, timed([lambda w=w, x8=x8: torch._int_mm(x8, w.T) for w in bytes_])
        xf, column = (x8.float() / 64).to(torch.float8_e4m3fn), torch.ones(t, 1, device="cuda")

        def scaled(w: torch.Tensor, xf: torch.Tensor = xf, column: torch.Tensor = column) -> torch.Tensor:
            return torch._scaled_mm(xf, w.T, column, row, out_dtype=torch.bfloat16, use_fast_accum=True)

        yield "torch_fp8_rowwise", t, timed([lambda w=w: scaled(w) for w in eights])


def humming_layer(impl: str, n: int, k: int) -> Any:
    """A layer of random weights, ready to run."""
    from humming.layer import HummingLayer

    config = HUMMING[impl]
    layer = HummingLayer(
        shape_n=n,
        shape_k=k,
        weight_config={"dtype": "int4", "group_size": 128},
        input_config=None if config is None else dict(config),
        torch_dtype=torch.bfloat16,
    ).cuda()
    layer.load_from_unquantized(torch.randn(n, k, dtype=torch.bfloat16, device="cuda"))
    layer.transform()
    return layer


def compile_humming(shapes: list[tuple[int, int]], tokens: list[int], workers: int = 16) -> None:
    """Has its kernels for these sizes compiled, several at a time: it keeps them on disk, and one after the
    other takes minutes. Each process needs the GPU, so none is forked. Errors are printed."""
    jobs = [(impl, n, k, tokens) for impl in HUMMING for n, k in shapes]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for job, error in zip(jobs, pool.map(_compile_humming, jobs), strict=True):
            if error:
                print(f"{job[0]} {job[1]} x {job[2]}: {error}", file=sys.stderr, flush=True)


def _compile_humming(job: tuple[str, int, int, list[int]]) -> str:
    impl, n, k, tokens = job
    try:
        layer = humming_layer(impl, n, k)
        for t in tokens:
            layer(torch.randn(t, k, dtype=torch.bfloat16, device="cuda"))
        torch.cuda.synchronize()
    except Exception:  # whatever its compiler or driver says
        return traceback.format_exc()
    return ""


def time_humming(impl: str, n: int, k: int, tokens: list[int]) -> Times:
    """With its own choice of tiles; activations ready, and (impl + "+quant") quantized by it."""
    from humming.forward import may_quant_input

    config = HUMMING[impl]
    layer = humming_layer(impl, n, k)
    layers = [layer] + [copy.deepcopy(layer) for _ in range(copies_needed(n * k / 2) - 1)]
    for t in tokens:
        x = torch.randn(t, k, dtype=torch.bfloat16, device="cuda")
        if config is None:
            yield impl, t, timed([lambda at=at, x=x: at(x) for at in layers])
            continue
        ready, scale = may_quant_input(layer.humming_config, x)

        def product(at: Any, ready: torch.Tensor = ready, scale: torch.Tensor = scale) -> torch.Tensor:
            return at(ready, input_scale=scale)

        yield impl, t, timed([lambda at=at: product(at) for at in layers])
        yield f"{impl}+quant", t, timed([lambda at=at, x=x: at(x) for at in layers])
