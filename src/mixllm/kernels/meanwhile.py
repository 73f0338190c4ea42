"""Kernels compiled while something else runs, so that nothing waits for them when they are wanted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch

from mixllm.config import Format


@contextmanager
def compiled_meanwhile(
    shapes: Iterable[tuple[int, int]], format: Format, tokens: int, dtype: torch.dtype, device: torch.device
) -> Iterator[None]:
    """Inside the context a thread compiles and loads what quantized layers [N, K] launch on `device` for so
    many tokens of this dtype; nothing where kernels come compiled. Its errors are raised at the end.

    Raises MixllmError at once where the device can run no such layer.
    """
    if device.type != "cuda" or torch.version.hip is not None:
        yield
        return
    from mixllm.kernels.cuda.many import kernels_of_many

    index = torch.cuda.current_device() if device.index is None else device.index
    kernels = kernels_of_many(shapes, format, tokens, dtype, index)
    thread = ThreadPoolExecutor(1, thread_name_prefix="mixllm-compile")
    try:
        made = [thread.submit(make) for make in kernels]
        yield
        for one in made:
            one.result()
    finally:
        thread.shutdown(wait=False, cancel_futures=True)
