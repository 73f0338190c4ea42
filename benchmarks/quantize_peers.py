"""What quantizing a block takes: mixllm, llm-compressor's GPTQ and AutoRound on one shape, one after another.

    python benchmarks/quantize_peers.py llama-3.1-8b --packages DIR --json FILE

Each quantizes a model of one block twice, so that nothing is compiled the second time, and one of two. The
difference is what a block takes, whatever starting, the embedding and the head cost. All get the same random
weights in bfloat16 and the same random tokens. Peers run as accuracy_peers.py starts them, each in a process
of its own that finds its package in DIR: 4 bits in groups of 128, activations left alone, AutoRound's 200
steps. mixllm measures salience, plans and rounds to W4.4A8, and alone writes a checkpoint too.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from quantize_peers_one import MAKERS
from safetensors.torch import save_file
from shapes_on_disk import SHAPES, write_model, write_tokenizer

from mixllm.placement import device_name, pick_device


def main() -> None:
    args = arguments()
    found: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "device": device_name(pick_device(args.device)),
        "torch": version("torch"),
        "shape": args.shape,
        "samples": args.samples,
        "window": args.window,
        "lines": {},
    }
    with TemporaryDirectory(dir=args.directory) as work:
        models = [Path(work) / str(blocks) for blocks in (1, 2)]
        for blocks, model in enumerate(models, 1):
            write_model(model, args.shape, blocks)
            write_tokenizer(model)
        ids = torch.randint(SHAPES[args.shape]["vocab_size"], (args.samples, args.window))
        save_file({"ids": ids}, Path(work) / "ids")
        for name in args.only:
            line = run(name, [*models, Path(work) / "ids", Path(work) / "line"], args)
            found["lines"][name] = line
            args.json.write_text(json.dumps(found, indent=1) + "\n")
            print(f"{name}: {line['seconds_a_block']:.1f} s a block, {line}", flush=True)


def run(name: str, paths: list[Path], args: argparse.Namespace) -> dict[str, Any]:
    """One line of the result, from a process of its own."""
    packages = [*filter(None, [os.environ.get("PYTHONPATH")]), *args.packages]
    # -P: this directory has a kernels.py, which is also the name of a package that transformers uses.
    command = [sys.executable, "-P", Path(__file__).with_name("quantize_peers_one.py"), name, *paths]
    subprocess.run(
        [*map(str, command), "--device", args.device],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(packages)},
        check=True,
    )
    line: dict[str, Any] = json.loads(paths[-1].read_text())
    again, two = (line["seconds"][key] for key in ("one block again", "two blocks"))
    return {"seconds_a_block": round(two - again, 2), **line}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--window", type=int, default=2048)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--only", nargs="+", choices=MAKERS, default=list(MAKERS))
    parser.add_argument("--packages", nargs="*", default=[])
    parser.add_argument("--directory", type=Path, help="where models go while it runs")
    parser.add_argument("--json", type=Path, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
