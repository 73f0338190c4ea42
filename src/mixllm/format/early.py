"""The first shard of a checkpoint, filled while the layers that go into it are still being made.

Every tensor's size is known from the plan, so its place in the file is known before its values are. What the
source gives is copied at once, a block's layers as soon as they wait in the spool; after the last block it
would take seconds in which nothing computes. One shard alone: more would be on disk twice.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open
from torch import Tensor

from mixllm.config import Format
from mixllm.files import full, sync_to_disk, temporary_of
from mixllm.format.config import QuantizedModule
from mixllm.format.layout import ORDER, layout
from mixllm.format.pack import shapes
from mixllm.format.shards import DTYPES
from mixllm.format.split import Stored, split, unchanged
from mixllm.format.validate import GUARD

if TYPE_CHECKING:
    from mixllm.source import Source

# Bytes of one call: a run that is stopped does not wait for more.
PIECE = 2**26


def begin_early(
    out: Path, source: Source, format: Format, modules: Mapping[str, QuantizedModule], shard_bytes: int
) -> Early:
    """The first shard of the checkpoint that assemble() will make of these; to be closed."""
    from_source = unchanged(source, modules)
    stored = dict(from_source)
    spelled = {dtype: spelling for spelling, dtype in DTYPES.items()}
    for name, module in modules.items():
        packed = shapes(format, module.rows, module.in_features)
        for key, (shape, (dtype, *_)) in {**packed, GUARD: ((0,), (torch.uint8,))}.items():
            stored[f"{name}.{key}"] = Stored(None, spelled[dtype], shape, math.prod(shape) * dtype.itemsize)
    shard, names = next(iter(split(stored, shard_bytes).filename_to_tensors.items()))
    given = [name for name in names if name in from_source]
    return Early(out / shard, {name: stored[name] for name in names}, source, given)


class Early:
    """The shard `path`, in a temporary file beside it that one thread fills.

    tensors: all that it will hold; given: the names of those that `source` has. A disk that is full, a
    layer that is not as it was described or a dtype that no model is known to have is no error here: there
    is no file then, and finish() says so.
    """

    def __init__(self, path: Path, tensors: Mapping[str, Stored], source: Source, given: list[str]) -> None:
        self._path, self._tensors, self._source = path, tensors, source
        self._left, self._starts = set(tensors), dict[str, int]()
        self._given_up = not all(tensor.dtype in ORDER for tensor in tensors.values())
        self._temporary = temporary_of(path)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="mixllm-early")
        self._steps: list[Future[None]] = [self._thread.submit(self._begin, given)]

    def take(self, file: Path) -> None:
        """Copy what is wanted of a spool's file, which stays as it is until finish() or close()."""
        self._steps.append(self._thread.submit(self._from_spool, file))

    def finish(self, path: Path, tensors: Mapping[str, Stored]) -> bool:
        """Whether the shard `path` with these tensors is there now, whole, under its name."""
        for step in self._steps:
            step.result()
        if self._given_up or self._left or path != self._path or not self._as_told(tensors):
            self._give_up()
            return False
        sync_to_disk(self._temporary)
        self._temporary.replace(path)
        sync_to_disk(path.parent)
        return True

    def close(self) -> None:
        """Leave nothing but a shard that finish() has named."""
        self._given_up = True
        self._thread.shutdown(cancel_futures=True)
        self._give_up()

    def _as_told(self, tensors: Mapping[str, Stored]) -> bool:
        """Whether tensors are those that the file has places for, wherever they wait."""
        return tensors.keys() == self._tensors.keys() and all(
            (tensor.dtype, tensor.shape) == (self._tensors[name].dtype, self._tensors[name].shape)
            for name, tensor in tensors.items()
        )

    def _begin(self, given: list[str]) -> None:
        if self._given_up:
            return
        header, self._starts = layout(self._tensors)
        with self._open(os.O_CREAT | os.O_EXCL) as handle:
            _write(handle, header, 0)
            for name in given:
                self._put(handle, name, self._source.tensor(name))

    def _from_spool(self, file: Path) -> None:
        if self._given_up:
            return
        with self._open() as handle, safe_open(file, framework="pt") as tensors:
            for name in tensors.offset_keys():
                if told := self._tensors.get(name):
                    part = tensors.get_slice(name)
                    if (part.get_dtype(), tuple(part.get_shape())) != (told.dtype, told.shape):
                        self._give_up()
                        return
                    self._put(handle, name, tensors.get_tensor(name))

    def _put(self, handle: int, name: str, tensor: Tensor) -> None:
        if tensor.nbytes != self._tensors[name].bytes:  # it would reach into the next one
            raise RuntimeError(f"{name}: {tensor.nbytes} bytes, not {self._tensors[name].bytes}")
        if tensor.numel():
            data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data
            for begin in range(0, len(data), PIECE):
                if self._given_up:
                    return
                _write(handle, data[begin : begin + PIECE], self._starts[name] + begin)
        self._left.discard(name)

    @contextmanager
    def _open(self, flags: int = 0) -> Iterator[int]:
        """The file, to be written in; what was written is on the disk when the context ends."""
        handle = -1
        try:
            handle = os.open(self._temporary, os.O_WRONLY | flags, 0o666)
            yield handle
            os.fdatasync(handle)
        except OSError as error:
            if not full(error):
                raise
            self._give_up()
        finally:
            if handle >= 0:
                os.close(handle)

    def _give_up(self) -> None:
        self._given_up = True
        self._temporary.unlink(missing_ok=True)


def _write(handle: int, data: bytes | memoryview, start: int) -> None:
    """All of the data, at that place of the file."""
    while data:
        written = os.pwrite(handle, data, start)
        data, start = data[written:], start + written
