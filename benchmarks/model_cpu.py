"""Tokens a second of SmolLM2-135M on the CPU, mixed and in bfloat16, interleaved in one run.

    python benchmarks/model_cpu.py [--threads 2] [--prompt 256] [--tokens 32] [--rounds 3] [--gguf FILE]

The model has SmolLM2-135M's sizes and random weights, on which times don't depend; transformers runs both,
mixed models also without the short ways of mixllm.decoding ("own code").
With --gguf llama.cpp runs that file in turn with them: SmolLM2-135M itself, for figures that compare.
Prints JSON: the best of the rounds, for a prompt taken in at once and for tokens one after the other.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from copy import deepcopy
from functools import partial
from pathlib import Path

import llama_cpp
import torch
from kernels_cpu import machine, mixed
from torch import nn
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from mixllm import decoding
from mixllm.config import PROFILES
from mixllm.decoding.way import OUTPUT_CACHE
from mixllm.kernels import cpu
from mixllm.nn import MixLinear
from mixllm.placement import versions

SIZES = LlamaConfig(
    hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
    num_key_value_heads=3, vocab_size=49152, tie_word_embeddings=True, max_position_embeddings=8192,
)  # fmt: skip


def mix(model: LlamaForCausalLM, profile: str, short: bool = True) -> LlamaForCausalLM:
    """The model with random mixed weights in its decoder's layers; short: decoding as a loaded model does."""
    model, format = deepcopy(model), PROFILES[profile]
    for module in model.model.layers.modules():
        for name, linear in module.named_children():
            if isinstance(linear, nn.Linear):
                weight = mixed(linear.out_features, linear.in_features, format)
                setattr(module, name, MixLinear.from_weight(weight, format))
    if short:
        decoding.install(model)
    return model


def speeds(model: LlamaForCausalLM, prompt: int, tokens: int) -> tuple[float, float]:
    """Tokens a second: of the prompt, and after it."""
    cache = DynamicCache(config=model.config)
    ids = torch.randint(0, model.config.vocab_size, (1, prompt))
    start = time.perf_counter()
    model(ids, **{OUTPUT_CACHE: cache}, logits_to_keep=1)
    middle = time.perf_counter()
    for _ in range(tokens):
        model(ids[:, :1], **{OUTPUT_CACHE: cache})
    return prompt / (middle - start), tokens / (time.perf_counter() - middle)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    for name, default in (("threads", 2), ("prompt", 256), ("tokens", 32), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--gguf", type=Path, help="a model of these sizes for llama.cpp (needs xllamacpp)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    load = {"before": os.getloadavg()[0]}
    dense = LlamaForCausalLM(SIZES).to(torch.bfloat16).eval()
    models = {"transformers bf16": dense} | {f"mixllm {name}": mix(dense, name) for name in PROFILES}
    models["mixllm fast, own code"] = mix(dense, "fast", short=False)
    with torch.no_grad(), ExitStack() as stack:
        runs: dict[str, Callable[[], tuple[float, float]]] = {
            name: partial(speeds, model, options.prompt, options.tokens) for name, model in models.items()
        }
        llama = None
        if options.gguf:
            sizes = (options.threads, options.prompt, options.tokens)
            llama = stack.enter_context(llama_cpp.started(options.gguf, *sizes))
            runs[f"llama.cpp {options.gguf.name}"] = llama.speeds
        best = {name: (0.0, 0.0) for name in runs}
        for turn in range(options.rounds + 1):
            for name, run in runs.items():
                prefill, decode = run()
                if turn:  # the first lays weights out
                    best[name] = (max(best[name][0], prefill), max(best[name][1], decode))
    result = {"machine": machine(), "instruction_set": cpu.instruction_sets()[0]} | vars(options)
    result |= {"gguf": options.gguf and options.gguf.name, "llama.cpp": llama and llama.described}
    result |= {"versions": versions(), "date": time.strftime("%Y-%m-%d", time.gmtime())}
    # What else ran on the machine: below one, nothing; afterwards, this too.
    result["load_average"] = load | {"after": os.getloadavg()[0]}
    result["tokens_per_second"] = {
        name: {"prompt": round(prefill, 1), "decode": round(decode, 1)}
        for name, (prefill, decode) in best.items()
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
