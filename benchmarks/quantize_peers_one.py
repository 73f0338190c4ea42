"""One quantizer of quantize_peers.py, in a process of its own.

    python -P benchmarks/quantize_peers_one.py NAME ONE TWO IDS OUT --device cuda

NAME: of MAKERS; ONE, TWO: models of one and of two blocks; IDS: a safetensors file with "ids" int64 [samples,
length]; OUT: a JSON file: seconds of each job, and the most of the GPU that tensors took.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import load_file

sys.path.append(str(Path(__file__).parent))
from peers_weights import Task, auto_round, gptq
from transformers import AutoModelForCausalLM

from mixllm import __version__

sys.path.pop()

GROUP = 128


class HalfTask(Task):
    """In the dtype that such a model is quantized in where only speed counts."""

    def load(self) -> Any:
        return AutoModelForCausalLM.from_pretrained(self.model, dtype=torch.bfloat16)


def mixllm(task: Task) -> None:
    """Salience, plan, rounding and writing, with the defaults but for the calibration text."""
    from mixllm.blocks import Decoder
    from mixllm.choosing import make_plan, score
    from mixllm.config import QuantConfig
    from mixllm.job import Job
    from mixllm.placement import pick_device
    from mixllm.source import Source
    from mixllm.writing import write_quantized

    samples, window = task.ids.shape
    config, source = QuantConfig(bits=4.4, samples=samples, window=window), Source(Path(task.model))
    job = Job(source, Decoder.open(source, pick_device(task.device), torch.bfloat16), task.ids)
    with TemporaryDirectory(dir=Path(task.model).parent) as out:
        plan = make_plan(job, config, score(job, config, stage=Path(out)))
        write_quantized(job, plan, config, Path(out))


# Their packages on PyPI, and what starts them.
MAKERS = {
    "mixllm": ("mixllm", mixllm),
    "llm-compressor GPTQ": ("llmcompressor", gptq),
    "AutoRound": ("auto-round", auto_round),
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("name", choices=MAKERS)
    for path in ("one", "two", "ids", "out"):
        parser.add_argument(path, type=Path)
    parser.add_argument("--device", required=True)
    args = parser.parse_args()
    package, make = MAKERS[args.name]
    ids, seconds = load_file(args.ids)["ids"], {}
    for what, model in (("one block", args.one), ("one block again", args.one), ("two blocks", args.two)):
        began = time.perf_counter()
        make(HalfTask(str(model), ids, args.device, GROUP, zeros=False))
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds[what] = round(time.perf_counter() - began, 2)
        print(f"  {args.name}: {what} in {seconds[what]} s", flush=True)
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    # A source tree on PYTHONPATH has no metadata.
    own = __version__ if package == "mixllm" else version(package)
    found = {"version": own, "seconds": seconds, "gpu_allocated": peak}
    args.out.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
