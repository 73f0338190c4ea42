"""What quantizing takes: real shapes with random weights, made on the spot.

    python benchmarks/quantize.py llama-3.1-8b llama-3.1-70b:4 llama-3.1-70b:8 --json FILE [--device cuda]
    torchrun --nproc-per-node 2 benchmarks/quantize.py llama-3.1-8b --json FILE

For each SHAPE[:BLOCKS] the whole job runs on random token ids: salience, plan, rounding, writing. Printed
and written: seconds, peak memory of GPU and host, GPU utilisation and disk traffic by stage, the rate of
salience's operations, and what --dry-run would have told. Random weights cost what real ones cost: the
work depends on shapes only. With torchrun, memory and GPU utilisation are the first process's.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from shapes_on_disk import SHAPES, write_model
from watching import Watching

from mixllm.blocks import Decoder
from mixllm.choosing import SCORE, make_plan, score, sizes
from mixllm.config import QuantConfig
from mixllm.job import Job
from mixllm.pipeline import END, follow
from mixllm.placement import device_name, pick_device, pick_dtype, versions
from mixllm.ranks import Ranks, joined
from mixllm.source import Source
from mixllm.writing import write_quantized


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("shapes", nargs="+", help=f"SHAPE[:BLOCKS] of {', '.join(SHAPES)}")
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--window", type=int, default=2048)
    parser.add_argument("--bits", type=float, default=4.4)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--directory", type=Path, help="where models go while it runs")
    parser.add_argument("--out", type=Path, help="where checkpoints go, if not there")
    parser.add_argument("--profile", action="store_true", help="print torch's table of GPU time by operation")
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args()
    rows = []
    with joined(pick_device(args.device)) as ranks:
        for text in args.shapes:
            shape, _, blocks = text.partition(":")
            with (
                TemporaryDirectory(dir=args.directory) as own,
                TemporaryDirectory(dir=args.out or args.directory) as out,
            ):
                work = Path(ranks.tell(own))
                if not ranks.first:
                    ranks.tell()  # once the model is written
                    help_first(work / "model", args, ranks)
                    continue
                rows.append(run(work, Path(out), shape, int(blocks) if blocks else None, args, ranks))
            about = {"date": time.strftime("%Y-%m-%d", time.gmtime()), "versions": versions()}
            args.json.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")


def help_first(model: Path, args: Any, ranks: Ranks) -> None:
    """What every process but the first does."""
    config = config_of(args)
    follow(open_random(model, config, args, ranks), config)


def config_of(args: Any) -> QuantConfig:
    return QuantConfig(bits=args.bits, samples=args.samples, window=args.window)


def open_random(model: Path, config: QuantConfig, args: Any, ranks: Ranks) -> Job:
    """The model and random ids, which need no tokenizer."""
    device = pick_device(args.device)
    source = Source(model)
    decoder = Decoder.open(source, device, pick_dtype(args.dtype, device, source.config))
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(decoder.vocabulary, (config.samples, config.window), generator=generator)
    return Job(source, decoder, ids, ranks)


def run(work: Path, out: Path, shape: str, blocks: int | None, args: Any, ranks: Ranks) -> dict[str, Any]:
    config = config_of(args)
    print(f"{shape}, {blocks or 'all'} blocks", flush=True)
    began = time.perf_counter()
    write_model(work / "model", shape, blocks)
    print(f"  written in {time.perf_counter() - began:.1f} s", flush=True)
    ranks.tell()
    gc.collect()  # the model before this one
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # and what writing this one took
    watching = Watching()
    with watching.running():
        if args.profile:
            kinds = [torch.profiler.ProfilerActivity.CUDA, torch.profiler.ProfilerActivity.CPU]
            with torch.profiler.profile(activities=kinds) as found:
                report = quantize(work / "model", out, config, args, watching, ranks)
            print(found.key_averages().table(sort_by="self_cuda_time_total", row_limit=45), flush=True)
        else:
            report = quantize(work / "model", out, config, args, watching, ranks)
    return {
        "shape": shape,
        "blocks": blocks or SHAPES[shape]["num_hidden_layers"],
        "samples": config.samples,
        "window": config.window,
        "processes": ranks.size,
        **report,
        "peaks": {key: watching.peak(key) for key in ("gpu_allocated", "gpu_reserved", "host")},
        "stages": watching.stages,
    }


def quantize(
    model: Path, out: Path, config: QuantConfig, args: Any, watching: Watching, ranks: Ranks
) -> dict[str, Any]:
    """The stages of mixllm.pipeline.quantize."""
    began = time.perf_counter()
    with watching.stage("open", 0):
        job = open_random(model, config, args, ranks)
    told = job.needs(measured=True)
    print(f"  told: {told.device / 1e9:.2f} GB GPU, {told.host / 1e9:.2f} GB host, {told}", flush=True)
    ranks.tell((SCORE, None))
    salience = score(job, config, watching, out)
    with watching.stage("plan", 0):
        plan = make_plan(job, config, salience)
    chosen = time.perf_counter() - began
    walked = sum(stage["seconds"] for name, stage in watching.stages.items() if name.startswith("salience"))
    write_quantized(job, plan, config, out, watching)
    ranks.tell((END, None))
    return {
        "device": f"{device_name(job.decoder.device)}, {platform.machine()}",
        "seconds": round(time.perf_counter() - began, 2),
        "seconds_until_plan": round(chosen, 2),
        "salience_tflops": round(salience_operations(job) / walked / 1e12, 1),
        "payload_bits": sizes(plan, config).payload_bits,
        "told": {"gpu": told.device, "host": told.host, "temporary": told.temporary, "batch": told.batch},
    }


def salience_operations(job: Job) -> float:
    """Multiplications and additions that salience needs, whatever is computed twice to save memory: forward,
    a forward for the Hessians and half of these, forward and backward, output errors of two widths; of the
    head forward and backward."""
    tokens = job.ids.numel()
    weights = sum(n * k for n, k in job.shapes.values())
    squares = sum(
        k * k for k in {(name.rpartition(".")[0], k): k for name, (_, k) in job.shapes.items()}.values()
    )
    head = job.decoder.model.get_output_embeddings().weight.numel()
    return 2.0 * tokens * ((1 + 1 + 2 + 2) * weights + squares / 2 + 2 * head)


if __name__ == "__main__":
    main()
