"""How benchmarks time a GPU: a graph of launches over copies of a weight; the memory's bandwidth."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

ROTATE_BYTES = 300e6
REPLAYS = 25
LEAST_REPLAYS = 7
LEAST_GRAPH_US = 400.0
# A first launch that takes so many seconds compiles or loads something: meanwhile the idle GPU's clock falls,
# and takes some tens of ms of work to rise again.
IDLE_S = 0.02
WAKE_US = 60e3
# No time is worth more of a lent machine than this.
MOST_US = 60e3

Launch = Callable[[], Any]


def timed(launches: list[Launch]) -> float:
    """Microseconds a launch: the median of up to 25 replays of a graph of all launches.

    They are repeated until they fill 0.4 ms. Where 25 would take over 60 ms there are fewer, at least 7.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin = time.perf_counter()
        launches[0]()
        idle = time.perf_counter() - begin > IDLE_S
        start.record()
        launches[-1]()
        end.record()
    torch.cuda.synchronize()
    once = max(start.elapsed_time(end) * 1e3, 5.0)
    launches = launches * max(1, math.ceil(LEAST_GRAPH_US / once / len(launches)))
    launches = launches[: max(2, math.ceil(MOST_US / LEAST_REPLAYS / once))]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for launch in launches:
            launch()
    for _ in range(math.ceil(WAKE_US / once / len(launches)) if idle else 1):
        graph.replay()
    replays = min(REPLAYS, max(LEAST_REPLAYS, int(MOST_US / once / len(launches))))
    times = []
    for _ in range(replays):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        times.append((start, end))
    torch.cuda.synchronize()
    return statistics.median(a.elapsed_time(b) for a, b in times) * 1e3 / len(launches)


def read_bandwidth() -> float:
    """GB/s of a reduction over 2 GB, the faster of two."""
    big = torch.randint(0, 1 << 30, (1 << 29,), dtype=torch.int32, device="cuda")
    return max(big.numel() * 4 / timed([big.max]) / 1e3 for _ in range(2))


def copies_needed(size: float) -> int:
    """So many weights of `size` bytes that none is still in the cache when its turn comes."""
    return max(2, math.ceil(ROTATE_BYTES / max(size, 1)))
