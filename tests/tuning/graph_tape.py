"""CUDA graphs without a GPU: torch's operations are written on a tape, which is run again for a replay.

As on a GPU, a replay runs no Python of the function: it reads the tensors that the operations read when they
were written down, and puts what comes of them where it was put then. An operation for which the host
would wait for the device, to learn a value or a size, cannot be written; where torch is told to warn of
those, it does.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mixllm.tuning import graphs
from mixllm.tuning.graphs import WAIT

INDEXING = ("index", "index_put", "index_put_")


def waits(func: Any, arguments: Any) -> bool:
    """Whether a GPU's host would wait in this operation."""
    if func._schema.name.removeprefix("aten::") in INDEXING:
        return any(t.dtype in (torch.bool, torch.uint8) for t in tree_leaves(arguments[1]) if t is not None)
    return bool({torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(func.tags))


class Tape(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.written: list[Any] = []
        self.before: list[tuple[Tensor, Tensor]] = []
        self.replays = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert not waits(func, args), f"{func}: not while a graph is captured"
        self.before += [(t, t.clone()) for t in changed(func, args)]
        found = func(*args, **(kwargs or {}))
        self.written.append((func, args, kwargs or {}, found))
        return found

    def undo(self) -> None:
        """What was written down was also done; a capture does nothing."""
        for tensor, was in reversed(self.before):
            tensor.copy_(was)
        self.before.clear()

    @torch.no_grad()
    def replay(self) -> None:
        self.replays += 1
        for func, args, kwargs, found in self.written:
            given = {place(t) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
            made = [t for t in tree_leaves(found) if isinstance(t, Tensor)]
            if func._schema.is_mutable:
                func(*args, **kwargs)
            elif any(place(t) not in given for t in made):
                again = [t for t in tree_leaves(func(*args, **kwargs)) if isinstance(t, Tensor)]
                for old, new in zip(made, again, strict=True):
                    old.copy_(new)


def changed(func: Any, args: Any) -> list[Tensor]:
    """The tensors that the operation writes into."""
    pairs = zip(func._schema.arguments, args, strict=False)
    written = [value for about, value in pairs if about.alias_info is not None and about.alias_info.is_write]
    return [t for t in tree_leaves(written) if isinstance(t, Tensor)]


def place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


class Watch(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if waits(func, args):
            warnings.warn(WAIT, stacklevel=1)
        return func(*args, **(kwargs or {}))


def use_tapes(monkeypatch: pytest.MonkeyPatch) -> list[Tape]:
    """Have torch.cuda's graphs be tapes; returns those that will be made."""
    made: list[Tape] = []
    watch: list[Any] = []

    def graph() -> Tape:
        made.append(Tape())
        return made[-1]

    @contextmanager
    def capture(tape: Tape, **_: Any) -> Iterator[None]:
        with tape:
            yield
        with torch.no_grad():
            tape.undo()

    def sync_debug_mode(mode: str) -> None:
        if mode == "warn":
            watch.append(Watch().__enter__())
        else:
            watch.pop().__exit__(None, None, None)

    stream = SimpleNamespace(wait_stream=lambda _: None)
    monkeypatch.setattr(graphs, "side_stream", lambda _: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: 0)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", graph)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", sync_debug_mode)
    return made
