"""Time a mixture's experts in one launch a layer beside torch's bf16 grouped product and experts one by one.

    python benchmarks/experts.py --json benchmarks/results/experts-h200.json

A time is that of all of it, routing included: tokens sorted, both products with gating between them, weighed
sums. Layers of random bits go round until they fill 300 MB (timing.py). `one by one` reads back which
experts are hit, so no graph can hold it: it is timed by the clock, eager.
"""

from __future__ import annotations

import argparse
import datetime
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from timing import copies_needed, timed
from torch import Tensor
from torch.nn.functional import silu

from mixllm.config import PROFILES, Format
from mixllm.format.mixed import MixedWeight
from mixllm.format.pack import shapes
from mixllm.kernels.cuda import prepare
from mixllm.kernels.cuda.grouped import GroupedExperts
from mixllm.kernels.cuda.routing import route

GPU = torch.device("cuda")
TOKENS = [1, 4, 16, 64, 256, 1024, 4096]


@dataclass(frozen=True)
class Shape:
    experts: int
    top: int
    hidden: int
    inner: int


SHAPES = {"mixtral-8x7b": Shape(8, 2, 4096, 14336), "qwen3-30b-a3b": Shape(128, 8, 2048, 768)}


def gated(both: Tensor) -> Tensor:
    first, second = both.chunk(2, -1)
    return silu(first) * second


def random_layer(format: Format, n: int, k: int, share8: float) -> MixedWeight:
    n8 = round(n * share8)
    tensors = {}
    for name, (shape, dtypes) in shapes(format, {4: n - n8, 8: n8}, k).items():
        if name == "rows":
            order = torch.randperm(n, device=GPU).int()
            tensors[name] = torch.cat((order[: n - n8].sort().values, order[n - n8 :].sort().values))
        elif dtypes[0].is_floating_point:
            tensors[name] = (torch.rand(shape, device=GPU) * 1e-3 + 1e-4).to(dtypes[0])
        else:
            tensors[name] = torch.randint(0, 100, shape, device=GPU, dtype=torch.uint8).view(dtypes[0])
    return MixedWeight(k, **tensors)


def pairs(format: Format, shape: Shape, share8: float) -> list[tuple[MixedWeight, MixedWeight]]:
    up, down = (2 * shape.inner, shape.hidden), (shape.hidden, shape.inner)
    return [
        (random_layer(format, *up, share8), random_layer(format, *down, share8)) for _ in range(shape.experts)
    ]


def bf16_layer(shape: Shape) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """As GroupedExperts, in bf16 by torch's grouped product."""
    up = torch.randn(shape.experts, shape.hidden, 2 * shape.inner, device=GPU, dtype=torch.bfloat16) * 0.02
    down = torch.randn(shape.experts, shape.inner, shape.hidden, device=GPU, dtype=torch.bfloat16) * 0.02

    def run(x: Tensor, weights: Tensor, ids: Tensor) -> Tensor:
        order = ids.flatten().argsort(stable=True)
        held = torch.zeros(shape.experts, dtype=torch.int32, device=GPU)
        held.scatter_add_(0, ids.flatten(), torch.ones_like(ids.flatten(), dtype=torch.int32))
        ends = held.cumsum(0).int()
        inner = gated(torch._grouped_mm(x[order // shape.top], up, offs=ends))
        y = torch.empty(len(order), shape.hidden, device=GPU, dtype=x.dtype)
        y[order] = torch._grouped_mm(inner, down, offs=ends)
        return (y.view(len(x), shape.top, -1) * weights.unsqueeze(2)).sum(1).to(x.dtype)

    return run


def by_clock(run: Callable[[], Any]) -> float:
    """Microseconds, the best of 5."""
    best = float("inf")
    for _ in range(6):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        run()
        torch.cuda.synchronize()
        best = min(best, (time.perf_counter() - begin) * 1e6)
    return best


def one_by_one(layer: list[tuple[Any, Any]], x: Tensor, weights: Tensor, ids: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    for number in ids.unique().tolist():
        token, place = (ids == number).nonzero(as_tuple=True)
        up, down = layer[number]
        y = down(gated(up(x[token]))) * weights[token, place, None]
        out.index_add_(0, token, y.to(out.dtype))
    return out


def measure(name: str, share8: float) -> list[dict[str, Any]]:
    shape, rows = SHAPES[name], []
    size = shape.experts * 3 * shape.hidden * shape.inner

    def add(impl: str, tokens: int, us: float) -> None:
        rows.append({"shape": name, "impl": impl, "share8": share8, "T": tokens, "us": round(us, 2)})
        print(name, impl, tokens, f"{us:.1f} us", flush=True)

    def given(tokens: int) -> tuple[Tensor, Tensor, Tensor]:
        ids = torch.rand(tokens, shape.experts, device=GPU).topk(shape.top).indices
        x = torch.randn(tokens, shape.hidden, device=GPU, dtype=torch.bfloat16)
        return x, torch.rand(tokens, shape.top, device=GPU), ids

    with torch.no_grad():
        plain = [bf16_layer(shape) for _ in range(copies_needed(size * 2))]
        for tokens in TOKENS:
            x = given(tokens)
            add("torch_bf16_grouped", tokens, timed([partial(run, *x) for run in plain]))
        del plain
        for profile in ("fast", "paper"):
            format = PROFILES[profile]
            weights = [pairs(format, shape, share8) for _ in range(copies_needed(size / 2))]
            layers = [GroupedExperts(layer, format, gated, GPU) for layer in weights]
            for tokens in TOKENS:
                x = given(tokens)
                add(f"mixllm {profile}", tokens, timed([partial(run, *x) for run in layers]))
            ids = given(1024)[2]
            add(f"routing {profile}", 1024, timed([partial(route, ids, shape.experts)] * 2))
            del layers
            if profile == "fast":
                alone = [(prepare(up, format, GPU), prepare(down, format, GPU)) for up, down in weights[0]]
                for tokens in TOKENS:
                    x = given(tokens)
                    add(f"one by one {profile}", tokens, by_clock(partial(one_by_one, alone, *x)))
                del alone
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--share8", type=float, default=0.1)
    parser.add_argument("--commit", default="", help="recorded where git is not at hand")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for name in arguments.shapes:
        rows += measure(name, arguments.share8)
        result = {
            "device": torch.cuda.get_device_name(0),
            "versions": {"torch": torch.__version__, "cuda": torch.version.cuda},
            "date": datetime.date.today().isoformat(),
            "commit": arguments.commit,
            "rows": rows,
        }
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
