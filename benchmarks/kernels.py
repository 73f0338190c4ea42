"""Time the CUDA backend's linear layer beside the libraries' on the layers of Llama-3.1 8B and 70B.

    python benchmarks/kernels.py --device cuda --json benchmarks/results/kernels-h100.json
    python benchmarks/kernels.py --report benchmarks/results/kernels-h100.json      (tables, no GPU)

A time is the median of 25 replays of one CUDA graph divided by its launches. The launches of a graph go round
copies of the weight that fill at least 300 MB, so that no weight is still in the cache when its turn comes.
Weights and activations are random. `mixllm` has its activations quantized before; `mixllm+quant` does it.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mixllm.config import GROUP_SIZE, PROFILES, Format
from mixllm.kernels.cuda import hopper, ops
from mixllm.kernels.cuda.launch import device
from mixllm.kernels.cuda.tiles import Scales, Tile, choose

SHAPES = [
    (6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336),
    (10240, 8192), (8192, 8192), (57344, 8192), (8192, 28672),
]  # fmt: skip
TOKENS = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192]
ROTATE_BYTES = 300e6
REPLAYS = 25
LEAST_GRAPH_US = 600.0

RAW = argparse.RawDescriptionHelpFormatter
Launch = Callable[[], Any]


def timed(launches: list[Launch]) -> float:
    """Microseconds a launch."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        launches[0]()
        start.record()
        launches[-1]()
        end.record()
    torch.cuda.synchronize()
    once = start.elapsed_time(end) * 1e3
    launches = launches * max(1, math.ceil(LEAST_GRAPH_US / max(once, 5.0) / len(launches)))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for launch in launches:
            launch()
    graph.replay()
    times = []
    for _ in range(REPLAYS):
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


def random_tensors(format: Format, n: int, k: int, share8: float) -> list[Tensor]:
    """A weight of random bits in the kernels' order: codes8, codes4, scales8, scales4, rows, row_scales."""
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
    return [bits(tiles8, 2 * groups, 1024), bits(tiles4, groups, 1024), scales8, scales4, rows, row_scales]


def copies(tensors: list[Tensor]) -> tuple[list[list[Tensor]], int]:
    """Enough copies of a weight to fill ROTATE_BYTES, and the bytes of one."""
    size = sum(t.numel() * t.element_size() for t in tensors)
    count = max(2, math.ceil(ROTATE_BYTES / max(size, 1)))
    return [tensors] + [[t.clone() for t in tensors] for _ in range(count - 1)], size


def time_mixllm(
    format: Format, weights: list[list[Tensor]], n: int, k: int, tokens: int, tile: Tile | None = None
) -> tuple[float, float]:
    """Microseconds without and with the quantization of activations."""
    x = torch.randn(tokens, k, dtype=torch.bfloat16, device="cuda")
    y = torch.empty(tokens, n, dtype=torch.bfloat16, device="cuda")
    scales = Scales.of(format, False)
    group = 0 if format.activation_group == "token" else format.activation_group
    rotate = format.rotation == "hadamard"
    many = tile is None and hopper.takes(0, tokens)
    quantized = ops.quantize(x, rotate, group, many)
    few_tile = tile or choose(scales, tokens, device(0).shared_limit)
    sizes = (tokens, len(weights[0][0]), len(weights[0][1]), -(-k // GROUP_SIZE))
    many_tile = hopper.choose(scales, *sizes, device(0).multiprocessors)

    def product(weight: list[Tensor]) -> None:
        if many:
            hopper.gemm_into(y, *quantized[:3], weight, None, scales, group, many_tile)
        else:
            ops.gemm_into(y, *quantized, weight, None, scales, group, few_tile)

    def both(weight: list[Tensor]) -> None:
        ops.quantize_into(x, rotate, group, *quantized)
        product(weight)

    return timed([lambda w=w: product(w) for w in weights]), timed([lambda w=w: both(w) for w in weights])


def time_libraries(n: int, k: int, tokens: list[int]) -> Iterator[tuple[str, int, float]]:
    """(impl, tokens, microseconds) of cuBLAS bf16, torch's int8 and torch's fp8 product."""
    dense = [torch.randn(n, k, dtype=torch.bfloat16, device="cuda")]
    while len(dense) * n * k * 2 < ROTATE_BYTES or len(dense) < 2:
        dense.append(dense[0].clone())
    for t in tokens:
        x = torch.randn(t, k, dtype=torch.bfloat16, device="cuda")
        yield "cublas_bf16", t, timed([lambda w=w, x=x: torch.nn.functional.linear(x, w) for w in dense])
    bytes_ = [torch.randint(-127, 128, (n, k), dtype=torch.int8, device="cuda")]
    while len(bytes_) * n * k < ROTATE_BYTES or len(bytes_) < 2:
        bytes_.append(bytes_[0].clone())
    eights = [(b.float() / 64).to(torch.float8_e4m3fn) for b in bytes_]
    row = torch.ones(1, n, device="cuda")
    for t in tokens:
        x8 = torch.randint(-127, 128, (t, k), dtype=torch.int8, device="cuda")
        if t > 16:  # it takes no fewer
            yield "torch_int_mm", t, timed([lambda w=w, x8=x8: torch._int_mm(x8, w.T) for w in bytes_])
        xf, column = (x8.float() / 64).to(torch.float8_e4m3fn), torch.ones(t, 1, device="cuda")

        def scaled(w: Tensor, xf: Tensor = xf, column: Tensor = column) -> Tensor:
            return torch._scaled_mm(xf, w.T, column, row, out_dtype=torch.bfloat16, use_fast_accum=True)

        yield "torch_fp8_rowwise", t, timed([lambda w=w: scaled(w) for w in eights])


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """All times, the most telling first; what the seconds given don't reach is left out."""
    begin = time.monotonic()
    rows: list[dict[str, Any]] = []
    bandwidth = read_bandwidth()
    few, many = ([t for t in arguments.tokens if (t > 256) == more] for more in (False, True))

    def late() -> bool:
        return time.monotonic() - begin > arguments.seconds

    def add(impl: str, format: str, share8: float, n: int, k: int, tokens: int, us: float) -> None:
        where = {"share8": share8, "N": n, "K": k, "T": tokens}
        rows.append({"impl": impl, "format": format, **where, "us": round(us, 3)})

    def mixed(name: str, share8: float, tokens: list[int]) -> None:
        for n, k in SHAPES:
            if late():
                return
            weights, _ = copies(random_tensors(PROFILES[name], n, k, share8))
            for t in tokens:
                alone, both = time_mixllm(PROFILES[name], weights, n, k, t)
                add("mixllm", name, share8, n, k, t, alone)
                add("mixllm+quant", name, share8, n, k, t, both)

    def libraries(tokens: list[int]) -> None:
        for n, k in SHAPES:
            if not late():
                for impl, t, us in time_libraries(n, k, tokens):
                    add(impl, "", 0.0, n, k, t, us)

    passes: list[Launch] = [
        lambda: libraries(few),
        lambda: mixed("fast", 0.1, few),
        lambda: mixed("paper", 0.1, few),
        lambda: mixed("fast", 0.0, few),
        lambda: libraries(many),
        lambda: mixed("fast", 0.1, many),
        lambda: mixed("fast", 1.0, few),
        lambda: mixed("fast", 0.2, few),
        lambda: mixed("paper", 0.1, many),
        *(lambda s=s: mixed("paper", s, few) for s in (0.0, 0.2, 1.0)),
        *(lambda s=s: mixed("fast", s, many) for s in (0.0, 0.2, 1.0)),
        *(lambda s=s: mixed("paper", s, many) for s in (0.0, 0.2, 1.0)),
    ]
    for number, run in enumerate(passes):
        run()
        print(f"pass {number} done after {time.monotonic() - begin:.0f} s", file=sys.stderr, flush=True)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "device": torch.cuda.get_device_name(),
        "versions": {"torch": torch.__version__, "cuda": torch.version.cuda},
        "date": datetime.date.today().isoformat(),
        "commit": arguments.commit or commit.stdout.strip(),
        "read_GBps": round(bandwidth, 1),
        "rows": rows,
    }


def weight_bytes(format: Format, n: int, k: int, share8: float) -> int:
    """What the product must read of a weight."""
    n8, groups = round(n * share8), -(-k // GROUP_SIZE)
    per4, per8 = (48, 32) if format.weight_scale == "group" else (16, 0)
    return (n - n8) * (k // 2 + groups * per4 // 16) + n8 * (k + groups * per8 // 16)


def report(data: dict[str, Any]) -> str:
    """Markdown: speed-up over cuBLAS bf16 (geometric mean over the shapes), decode over the byte time."""
    times = {(r["impl"], r["format"], r["share8"], r["N"], r["K"], r["T"]): r["us"] for r in data["rows"]}
    tokens = sorted({r["T"] for r in data["rows"]})
    kinds = sorted({(r["impl"], r["format"], r["share8"]) for r in data["rows"]} - {("cublas_bf16", "", 0.0)})
    lines = ["| | " + " | ".join(f"T = {t}" for t in tokens) + " |", "|---" * (len(tokens) + 1) + "|"]
    for kind in kinds:
        cells = []
        for t in tokens:
            ratios = [
                times["cublas_bf16", "", 0.0, n, k, t] / times[*kind, n, k, t]
                for n, k in SHAPES
                if (*kind, n, k, t) in times
            ]
            cells.append(f"{math.exp(statistics.fmean(map(math.log, ratios))):.2f}" if ratios else "")
        impl, format, share8 = kind
        name = f"{impl} {format} {share8:.0%} 8 bit" if format else impl
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += ["", "Microseconds over the byte time, 10 % 8-bit rows:", ""]
    few = [t for t in tokens if t <= 16]
    lines += ["| N x K | format | " + " | ".join(f"T = {t}" for t in few) + " |"]
    lines += ["|---" * (len(few) + 2) + "|"]
    for n, k in SHAPES:
        for name in sorted({r["format"] for r in data["rows"]} - {""}):
            floor = weight_bytes(PROFILES[name], n, k, 0.1) / data["read_GBps"] / 1e3
            over = [times.get(("mixllm", name, 0.1, n, k, t), math.nan) - floor for t in few]
            lines.append(
                f"| {n} x {k} | {name} | "
                + " | ".join("" if math.isnan(us) else f"{us:.1f}" for us in over)
                + " |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=RAW)
    parser.add_argument("--device", default="cuda", choices=["cuda"])
    parser.add_argument("--json", type=Path, help="write all times here")
    parser.add_argument("--report", type=Path, help="print the tables of such a file and stop")
    parser.add_argument("--tokens", type=int, nargs="+", default=TOKENS)
    parser.add_argument("--seconds", type=float, default=math.inf, help="start nothing new after so long")
    parser.add_argument("--commit", default="", help="recorded where git is not at hand")
    arguments = parser.parse_args()
    if arguments.report:
        print(report(json.loads(arguments.report.read_text())))
        return
    data = measure(arguments)
    if arguments.json:
        text = json.dumps(data, separators=(",", ":")).replace("},{", "},\n{")
        arguments.json.write_text(text + "\n")
    print(report(data))


if __name__ == "__main__":
    main()
