"""Time the CUDA backend's linear layer beside the libraries' on the layers of Llama-3.1 8B and 70B.

    python benchmarks/kernels.py --device cuda --json benchmarks/results/kernels-h100.json
    python benchmarks/kernels.py --report benchmarks/results/kernels-h100.json    (tables; no GPU)
    python benchmarks/kernels.py --report benchmarks/results/kernels-h200.json --into docs/kernels.md

A time is the median of the replays of one CUDA graph divided by its launches (timing.py). The launches of a
graph go round copies of the weight that fill at least 300 MB, so that no weight is still in the cache when
its turn comes. Weights and activations are random. `mixllm` has its activations quantized before;
`mixllm+quant` does it.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from kernels_report import FORMATS, SHAPES, insert, report
from peers import HUMMING, compile_humming, humming_version, time_cublas, time_humming, time_torch
from timing import copies_needed, read_bandwidth, timed
from torch import Tensor

from mixllm.config import GROUP_SIZE, Format
from mixllm.kernels.cuda import hopper, ops, order, quantizing, skinny, strips
from mixllm.kernels.cuda.blocks import blocks
from mixllm.kernels.cuda.launch import device
from mixllm.kernels.cuda.tiles import Scales, choose

# Compiling humming's kernels for more takes minutes.
HUMMING_TOKENS = (1, 4, 16, 64, 128)
TOKENS = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192]
RAW = argparse.RawDescriptionHelpFormatter
Peer = Callable[[int, int, list[int]], Iterator[tuple[str, int, float]]]


def random_tensors(format: Format, n: int, k: int, share8: float) -> list[Tensor]:
    """A weight of random bits in the kernels' order: codes8, codes4, scales8, scales4, rows, row_scales,
    blocks and excess."""
    n8 = round(n * share8)
    tiles8, tiles4, groups = -(-n8 // 16), -(-(n - n8) // 16), format.groups(k)

    def bits(*shape: int) -> Tensor:
        return torch.randint(0, 256, shape, dtype=torch.uint8, device="cuda")

    def scales(tiles: int) -> Tensor:
        values = torch.rand(tiles, groups, 16, device="cuda").half() * 0.01
        return values.view(torch.uint8)

    by_group = format.weight_scale == "group"
    scales4 = bits(tiles4, groups, 16)
    if by_group:
        scales4 = torch.cat((scales(tiles4), scales4 % 16), 2)
    scales8 = scales(tiles8) if by_group else bits(tiles8, groups, 0)
    eight = torch.randperm(n, device="cuda") < n8

    def padded(rows: Tensor) -> Tensor:
        return torch.nn.functional.pad(rows.flatten().int(), (0, -len(rows) % 16), value=-1)

    rows = torch.cat((padded(eight.nonzero()), padded((~eight).nonzero())))
    row_scales = torch.rand(0 if by_group else len(rows), device="cuda") * 0.01
    return [
        bits(tiles8, 2 * groups, 1024),
        bits(tiles4, groups, 1024),
        scales8,
        scales4,
        rows,
        row_scales,
        torch.cat((blocks(rows, tiles8), torch.rand(len(rows), device="cuda").view(torch.int32))),
    ]


def copies(tensors: list[Tensor]) -> list[list[Tensor]]:
    """A weight, and as many copies as a timing goes round."""
    size = sum(t.numel() * t.element_size() for t in tensors)
    return [tensors] + [[t.clone() for t in tensors] for _ in range(copies_needed(size) - 1)]


def time_mixllm(
    format: Format, weights: list[list[Tensor]], n: int, k: int, tokens: int
) -> tuple[float, float]:
    """Microseconds without and with the quantization of activations."""
    x = torch.randn(tokens, k, dtype=torch.bfloat16, device="cuda")
    y = torch.empty(tokens, n, dtype=torch.bfloat16, device="cuda")
    scales = Scales.of(format, False)
    group = 0 if format.activation_group == "token" else format.activation_group
    rotate = format.rotation == "hadamard"
    rows16, groups = len(weights[0][0]) + len(weights[0][1]), -(-k // GROUP_SIZE)
    size = (scales, group, tokens, n, groups)
    few = skinny.takes(0, scales, tokens, n, groups)
    many = hopper.takes(0, scales, tokens)
    few_tile = strips.choose(*size) or skinny.choose(scales, tokens, n, groups) if few else None
    fresh = strips.quantizes(scales, tokens, n, groups) if few else None
    quantized = ops.quantize(x, rotate, group, *order(0, *size))
    any_tile = choose(scales, tokens, device(0).shared_limit)
    many_tile = hopper.choose(scales, tokens, rows16, groups, device(0).multiprocessors)

    def product(weight: list[Tensor]) -> None:
        if few_tile:
            skinny.gemm_into(y, *quantized, weight, None, scales, group, few_tile)
        elif many:
            hopper.gemm_into(y, *quantized, weight, None, scales, group, many_tile)
        else:
            ops.gemm_into(y, *quantized, weight, None, scales, group, any_tile)

    def both(weight: list[Tensor]) -> None:
        if fresh:
            return strips.linear_into(y, x, weight, None, scales, rotate, *fresh)
        quantizing.quantize_into(x, rotate, group, *quantized)
        product(weight)

    return timed([lambda w=w: product(w) for w in weights]), timed([lambda w=w: both(w) for w in weights])


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """All times, the most telling first; what the seconds given don't reach is left out."""
    begin = time.monotonic()
    rows: list[dict[str, Any]] = []
    bandwidth = read_bandwidth()
    decode = [t for t in arguments.tokens if t <= 256]
    many = [t for t in arguments.tokens if t > 256]

    def late() -> bool:
        return time.monotonic() - begin > arguments.seconds

    def add(impl: str, format: str, share8: float, n: int, k: int, tokens: int, us: float) -> None:
        where = {"share8": share8, "N": n, "K": k, "T": tokens}
        rows.append({"impl": impl, "format": format, **where, "us": round(us, 3)})

    def mixed(name: str, share8: float, tokens: list[int]) -> None:
        for n, k in SHAPES:
            if late():
                return
            weights = copies(random_tensors(FORMATS[name], n, k, share8))
            for t in tokens:
                alone, both = time_mixllm(FORMATS[name], weights, n, k, t)
                add("mixllm", name, share8, n, k, t, alone)
                add("mixllm+quant", name, share8, n, k, t, both)

    def peers(run: Peer, tokens: list[int]) -> None:
        for n, k in SHAPES:
            if late():
                return
            try:
                for impl, t, us in run(n, k, tokens):
                    add(impl, "", 0.0, n, k, t, us)
            except Exception:  # a library's failure costs its own row only
                print(f"{run} {n} x {k}: {traceback.format_exc()}", file=sys.stderr, flush=True)

    def humming() -> None:
        tokens = [t for t in decode if t in HUMMING_TOKENS]
        if humming_version() and not late():
            compile_humming(SHAPES, tokens)
            for impl in HUMMING:
                peers(partial(time_humming, impl), tokens)

    steps: list[Callable[[], None]] = []
    for tokens, shares in ((decode, (0.1, 0.0)), (many, (0.1,))):
        steps.append(partial(peers, time_cublas, tokens))
        steps += [partial(mixed, name, share, tokens) for share in shares for name in ("fast", "paper")]
        if tokens == many:
            steps.append(partial(mixed, "group", 0.1, tokens))
        steps.append(partial(peers, time_torch, tokens))
    for tokens, shares in ((decode, (1.0, 0.2)), (many, (0.0, 1.0, 0.2))):
        steps += [partial(mixed, name, share, tokens) for share in shares for name in ("fast", "paper")]
    steps.append(humming)
    for number, run in enumerate(steps):
        run()
        print(
            f"{number + 1} of {len(steps)} after {time.monotonic() - begin:.0f} s",
            file=sys.stderr,
            flush=True,
        )
        if arguments.json:  # as far as it is, should the run be cut off
            arguments.json.write_text(as_text(result(arguments, bandwidth, rows)))
    return result(arguments, bandwidth, rows)


def result(arguments: argparse.Namespace, bandwidth: float, rows: list[dict[str, Any]]) -> dict[str, Any]:
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "device": torch.cuda.get_device_name(),
        "versions": {"torch": torch.__version__, "cuda": torch.version.cuda, "humming": humming_version()},
        "date": datetime.date.today().isoformat(),
        "commit": arguments.commit or commit.stdout.strip(),
        "read_GBps": round(bandwidth, 1),
        "rows": rows,
    }


def as_text(data: dict[str, Any]) -> str:
    return json.dumps(data, separators=(",", ":")).replace("},{", "},\n{") + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=RAW)
    parser.add_argument("--device", default="cuda", choices=["cuda"])
    parser.add_argument("--json", type=Path, help="write all times here")
    parser.add_argument("--report", type=Path, help="print the tables of such a file and stop")
    parser.add_argument("--into", type=Path, help="with --report: put tables and plot into this page")
    parser.add_argument("--tokens", type=int, nargs="+", default=TOKENS)
    parser.add_argument("--seconds", type=float, default=math.inf, help="start nothing new after so long")
    parser.add_argument("--commit", default="", help="recorded where git is not at hand")
    arguments = parser.parse_args()
    if arguments.report:
        data = json.loads(arguments.report.read_text())
        print(report(data))
        if arguments.into:
            insert(data, arguments.report.stem, arguments.into)
        return
    print(report(measure(arguments)))


if __name__ == "__main__":
    main()
