"""Times of the CPU kernels against what a user would run instead, interleaved in one run.

    python benchmarks/kernels_cpu.py [--threads 2] [--shapes large|small|all] [--rounds 5] [--ggml FOLDER]

Weights rotate past the last-level cache; each figure is the best of its rounds. Writes
benchmarks/results/kernels-cpu-MODEL-THREADS-threads.json. onnxruntime and onnx are used where installed,
llama.cpp's ggml where its shared libraries' folder is given.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import re
import statistics
import subprocess
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import ggml_product
import torch
from torch import Tensor

from mixllm.config import PROFILES, Format
from mixllm.files import write_atomically
from mixllm.format.mixed import MixedWeight
from mixllm.kernels import cpu

LARGE = [(14336, 4096), (4096, 4096), (4096, 14336)]
SMALL = [(576, 576), (1536, 576), (576, 1536)]
TOKENS = [1, 4, 16, 64, 256]
SHARE8 = 0.1
SUM = "torch sum of as many bytes"
# torch's 4-bit product is fast in bfloat16 alone.
BFLOAT16 = ("torch bf16", "torch int4")
Run = Callable[[Tensor], object]


def mixed(n: int, k: int, format: Format) -> MixedWeight:
    """A weight of random codes; times don't depend on them."""
    n8, groups = round(n * SHARE8), format.groups(k)
    n4 = n - n8
    by_group = format.weight_scale == "group"

    def scales(rows: int) -> Tensor:
        return torch.rand(rows, groups).half() + 0.1 if by_group else torch.rand(rows) + 0.1

    def random(*shape: int) -> Tensor:
        return torch.randint(0, 256, shape, dtype=torch.uint8)

    order = torch.randperm(n)
    return MixedWeight(
        k,
        rows=torch.cat((order[:n4].sort().values, order[n4:].sort().values)).int(),
        codes4=random(n4, k // 2),
        zeros4=random(n4, (groups + 1) // 2),
        scales4=scales(n4),
        codes8=torch.randint(-127, 128, (n8, k), dtype=torch.int8),
        scales8=scales(n8),
        multipliers4=None if by_group else random(n4, (groups + 1) // 2),
    )


def contenders(n: int, k: int, threads: int, ggml: Path | None) -> dict[str, list[Run]]:
    """Each of enough copies that none is still in a cache when its turn comes again."""
    cache = last_level_cache()

    def copies(bytes_of_one: float, make: Callable[[], Run]) -> list[Run]:
        return [make() for _ in range(2 + int(1.25 * cache / bytes_of_one))]

    def read(words: Tensor) -> Run:
        return lambda x: words.sum()

    def dense(w: Tensor) -> Run:
        return lambda x: torch.nn.functional.linear(x, w)

    def int4(w: Tensor) -> Run:
        return lambda x: torch.ops.aten._weight_int4pack_mm_for_cpu(x, w, group, qparams)

    runs: dict[str, list[Any]] = {}
    for name, format in PROFILES.items():
        weight = mixed(n, k, format)
        runs[f"mixllm {name}"] = copies(n * k / 2, lambda w=weight, f=format: cpu.prepare(w, f))
    # What memory allows in this order of calls: the sum of as many bytes as `fast` reads.
    words = sum(tensor.nbytes for tensor in runs["mixllm fast"][0].tensors) // 8
    runs[SUM] = copies(8 * words, lambda: read(torch.ones(words, dtype=torch.int64)))
    w = torch.randn(n, k)
    runs["torch fp32"] = copies(4 * n * k, lambda: dense(w.clone()))
    runs["torch bf16"] = copies(2 * n * k, lambda: dense(w.bfloat16()))
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(torch.randint(0, 16, (n, k)).int(), 1)
    group = 64 if k % 128 else 128
    qparams = torch.rand(k // group, n, 2).bfloat16()
    runs["torch int4"] = copies(n * k / 2, lambda: int4(packed.clone()))
    if not missing("onnxruntime", "onnx"):
        from onnx_nbits import model, session

        graph = model(n, k)
        for level in (0, 4):
            runs[f"onnxruntime MatMulNBits level {level}"] = copies(
                n * k / 2, lambda a=level: session(graph(a), threads)
            )
    if ggml:
        for kind in ggml_product.kinds(ggml, k):
            layer = partial(ggml_product.Layer, ggml, kind, n, k, threads)
            runs[f"ggml {kind}"] = copies(n * k / 2, layer)
    return runs


def last_level_cache() -> int:
    """Its size in bytes, as Linux tells it."""
    sizes = Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
    return max(int(size.read_text().strip().removesuffix("K")) for size in sizes) << 10


def missing(*packages: str) -> list[str]:
    def absent(package: str) -> bool:
        try:
            importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            return True
        return False

    return [package for package in packages if absent(package)]


def seconds(run: Run, x: Tensor) -> float:
    start = time.perf_counter()
    run(x)
    return time.perf_counter() - start


def read_bandwidth() -> float:
    """GB/s of all threads summing 256 MiB, the best of ten."""
    data = torch.ones(32 << 20, dtype=torch.int64)
    return data.nbytes / min(seconds(lambda x: x.sum(), data) for _ in range(10)) / 1e9


def measure(n: int, k: int, threads: int, rounds: int, ggml: Path | None) -> list[dict[str, object]]:
    runs = contenders(n, k, threads, ggml)
    rows = []
    for tokens in TOKENS:
        x = torch.randn(tokens, k)
        inputs = {name: x.bfloat16() if name in BFLOAT16 else x for name in runs}
        times: dict[str, list[float]] = {name: [] for name in runs}
        # Small layers take microseconds: several calls, one a copy, make a time.
        calls = max(1, (1 << 22) // (n * k))
        for turn in range(rounds + 1):
            for name, copies in runs.items():
                spent = [
                    seconds(copies[(turn * calls + i) % len(copies)], inputs[name]) for i in range(calls)
                ]
                if turn:  # the first is for warming up
                    times[name].append(statistics.median(spent) * 1e3)
        rows.append(
            {"n": n, "k": k, "tokens": tokens, "read_gb_s": round(read_bandwidth(), 1)}
            | {"ms": {name: round(min(t), 4) for name, t in times.items()}}
        )
        print(json.dumps(rows[-1]), flush=True)
    return rows


def machine() -> dict[str, object]:
    """The processor as Linux describes it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    described = dict(re.split(r"\s*: ?", line, maxsplit=1) for line in lines if ":" in line)
    keys = ("model name", "cpu family", "model", "flags")
    return {key: described[key] for key in keys}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--shapes", choices=["large", "small", "all"], default="all")
    parser.add_argument("--ggml", type=Path, help="folder of libggml-base.so and libggml-cpu.so")
    parser.add_argument("--note", default="", help="what else the machine was doing; kept in the results")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    shapes = {"large": LARGE, "small": SMALL, "all": SMALL + LARGE}[options.shapes]
    described = machine()
    name = re.sub(r"\W+", "-", f"{described['model name']}-{described['cpu family']}-{described['model']}")
    packages = [p for p in ("torch", "onnxruntime") if not missing(p)]
    here = Path(__file__).parent
    commit = subprocess.run(["git", "-C", here, "rev-parse", "HEAD"], capture_output=True, text=True).stdout
    result = {
        "machine": described,
        "threads": options.threads,
        "instruction_set": cpu.instruction_sets()[0],
        "versions": {p: importlib.metadata.version(p) for p in packages},
        "ggml": ggml_product.described(options.ggml) if options.ggml else None,
        "commit": commit.strip(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "note": options.note,
        "share_of_8_bit_rows": SHARE8,
    }
    times: list[dict[str, object]] = []
    with torch.no_grad():
        for n, k in shapes:
            times += measure(n, k, options.threads, options.rounds, options.ggml)
            path = here / "results" / f"kernels-cpu-{name.lower()}-{options.threads}-threads.json"
            text = json.dumps(result | {"times": times}, indent=1)
            write_atomically(path, lambda to, text=text: to.write_text(text + "\n"))


if __name__ == "__main__":
    main()
