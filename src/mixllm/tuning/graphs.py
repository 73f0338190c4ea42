"""Functions that are called again and again on tensors of one shape: on a GPU, as CUDA graphs.

A step of tuning is thousands of launches, which take a host several times as long as they take the GPU; a
graph of them is one. (torch.cuda.graph's documentation: whole-network capture.)
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

Function = Callable[[Tensor], Tensor]

# Calls of each function before it is captured: in the first, libraries and caches make what they keep; the
# last is watched.
PLAIN = 2
# What torch says, in its mode for it, where the host waits for the device.
WAIT = "called a synchronizing CUDA operation"


@cache
def side_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all captures: libraries keep memory for every stream that they were used on."""
    return torch.cuda.Stream(device)


class Graphs:
    """graphs(function, x) is function(x): float [...] -> a tensor.

    Functions, known by their names, are called in turn, each always with a tensor of one shape, and take all
    else from the same places at every call. On a CUDA device each is captured when it is called the third
    time, and replayed from then on: what it returns is then a tensor of the graph's, good until the next
    call. One in which the host waits for the device, as a mixture's experts do to learn who has which tokens,
    may do other work at every call; then none is captured. All share memory, since they run in turn.
    """

    def __init__(self, device: torch.device) -> None:
        self.plain = device.type != "cuda"
        self._calls: Counter[str] = Counter()
        self._captured: dict[str, _Captured] = {}
        if not self.plain:
            self._stream, self._pool = side_stream(device), torch.cuda.graph_pool_handle()

    def __call__(self, function: Function, x: Tensor) -> Tensor:
        if self.plain:
            return function(x)
        # By name: a bound method would keep its object, and with it all of this memory, in a circle.
        name = function.__name__
        self._calls[name] += 1
        if self._calls[name] <= PLAIN:
            return self._warm(function, x, watched=self._calls[name] == PLAIN)
        if name not in self._captured:
            self._captured[name] = self._capture(function, x)
        given, graph, found = self._captured[name]
        given.copy_(x)
        graph.replay()
        return found

    def _warm(self, function: Function, x: Tensor, *, watched: bool) -> Tensor:
        """function(x) on the stream of the capture, whose libraries need memory of their own."""
        here = torch.cuda.current_stream(x.device)
        self._stream.wait_stream(here)
        with torch.cuda.stream(self._stream):
            if watched:
                with _waits() as waits:
                    found = function(x)
                self.plain = bool(waits)
            else:
                found = function(x)
        here.wait_stream(self._stream)
        return found

    def _capture(self, function: Function, x: Tensor) -> _Captured:
        given, graph = x.clone(), torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
            found = function(given)
        return _Captured(given, graph, found)


class _Captured(NamedTuple):
    """Where a graph reads what it is given, and what it made of it."""

    given: Tensor
    graph: torch.cuda.CUDAGraph
    found: Tensor


@contextmanager
def _waits() -> Iterator[list[str]]:
    """A list that has, at the end, what torch said of each time that the host waited for a GPU."""
    found: list[str] = []
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode("default")
    found += [text for warning in said if WAIT in (text := str(warning.message))]
