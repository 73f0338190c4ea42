"""What other tools take to quantize the shapes of quantize.py, beside mixllm, in one run on one machine.

    python benchmarks/quantize_peers.py llama-3.1-8b:2 --packages DIR --json FILE [--samples 128]

Each tool runs in a process of its own, as its documentation starts it, on a bfloat16 model with random
weights and on random token ids. Written of each: seconds from the model in files to the model quantized in
memory (mixllm's: in files), and the peak of GPU memory. llm-compressor and auto-round are looked for in DIR.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from shapes_on_disk import SHAPES, write_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from mixllm.placement import device_name

GROUP = 128


def load(model: str) -> Any:
    auto: Any = AutoModelForCausalLM
    return auto.from_pretrained(model, dtype=torch.bfloat16)


def gptq(model: str, ids: torch.Tensor) -> None:
    """llm-compressor's W4A16 preset: groups of 128, symmetric, columns by their activations."""
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.gptq import GPTQModifier

    mask = torch.ones_like(ids)
    oneshot(
        model=load(model),
        dataset=Dataset.from_dict({"input_ids": ids.tolist(), "attention_mask": mask.tolist()}),
        recipe=[GPTQModifier(targets="Linear", scheme="W4A16", ignore=["lm_head"])],
        max_seq_length=ids.shape[1],
        num_calibration_samples=len(ids),
    )


def auto_round(model: str, ids: torch.Tensor) -> None:
    """W4A16 in groups of 128, 200 steps of 8 windows a block."""
    from auto_round import AutoRound

    AutoRound(
        load(model),
        AutoTokenizer.from_pretrained(model),
        scheme="W4A16",
        group_size=GROUP,
        dataset=list(ids.split(1)),
        nsamples=len(ids),
        seqlen=ids.shape[1],
    ).quantize()


PEERS: dict[str, tuple[str, Callable[[str, torch.Tensor], None]]] = {
    "llm-compressor GPTQ": ("llmcompressor", gptq),
    "AutoRound": ("auto-round", auto_round),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shapes", nargs="+", help=f"SHAPE[:BLOCKS] of {', '.join(SHAPES)}")
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--window", type=int, default=2048)
    parser.add_argument("--packages", default="", help="directory that the other tools are installed in")
    parser.add_argument("--directory", type=Path, help="where models go while it runs")
    parser.add_argument("--limit", type=float, default=3600, help="seconds that one tool may take")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--peer", choices=PEERS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peer:
        one(args.peer, Path(args.shapes[0]))
        return
    rows = []
    for text in args.shapes:
        with TemporaryDirectory(dir=args.directory) as work:
            for row in beside(text, Path(work), args):
                rows.append({"shape": text, "samples": args.samples, "window": args.window, **row})
                print(rows[-1], flush=True)
                about = {
                    "date": time.strftime("%Y-%m-%d", time.gmtime()),
                    "device": device_name(torch.device("cuda")),
                }
                args.json.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")


def beside(text: str, work: Path, args: Any) -> Any:
    """A row for each tool: mixllm's own benchmark, then the others."""
    own = work / "own.json"
    quantize = [str(Path(__file__).with_name("quantize.py")), text, "--json", str(own)]
    sizes = ["--samples", str(args.samples), "--window", str(args.window), "--directory", str(work)]
    subprocess.run([sys.executable, *quantize, *sizes], check=True, timeout=args.limit)
    [found] = json.loads(own.read_text())["rows"]
    yield {"tool": "mixllm", "seconds": found["seconds"], "gpu_reserved": found["peaks"]["gpu_reserved"]}
    shape, _, blocks = text.partition(":")
    write_model(work / "model", shape, int(blocks) if blocks else None)
    write_tokenizer(work / "model")
    ids = torch.randint(SHAPES[shape]["vocab_size"], (args.samples, args.window))
    save_file({"ids": ids}, work / "ids.safetensors")
    paths = [os.environ.get("PYTHONPATH", ""), args.packages]
    environment = {**os.environ, "PYTHONPATH": ":".join(path for path in paths if path)}
    for peer in PEERS:
        command = [sys.executable, __file__, str(work), "--peer", peer]
        try:
            done = subprocess.run(
                command, env=environment, stdout=subprocess.PIPE, text=True, timeout=args.limit, check=True
            )
        except (subprocess.TimeoutExpired, subprocess.CalledProcessError) as error:
            yield {"tool": peer, "failed": str(error)}
            continue
        yield json.loads(done.stdout.splitlines()[-1])


def one(peer: str, work: Path) -> None:
    """Run one tool on the model and ids in `work`; the last line printed is its row."""
    package, make = PEERS[peer]
    ids = load_file(work / "ids.safetensors")["ids"]
    began = time.perf_counter()
    make(str(work / "model"), ids)
    torch.cuda.synchronize()
    row = {
        "tool": peer,
        "version": f"{package} {version(package)}",
        "seconds": round(time.perf_counter() - began, 1),
        "gpu_reserved": torch.cuda.max_memory_reserved(),
    }
    print(json.dumps(row), flush=True)


def write_tokenizer(model: Path) -> None:
    """One without words: the other tools want a tokenizer, though they are given token ids."""
    words = Tokenizer(WordLevel({"?": 0}, unk_token="?"))
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="?").save_pretrained(model)


if __name__ == "__main__":
    main()
