"""GPTQ from few tokens against rounding to nearest: the output error on other tokens (docs/method.md).

    python benchmarks/few_tokens.py MODEL --text wiki.train.raw --json benchmarks/results/few-tokens-NAME.json

What an expert of a mixture meets, measured on an ordinary model: a layer's inputs are drawn at random, GPTQ
gets n of them, and both roundings (4 bits, `fast`, with clip search) are compared on 4,096 others.
"""

from __future__ import annotations

import argparse
import datetime
import json
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoTokenizer

from mixllm.blocks import Decoder
from mixllm.config import QuantConfig
from mixllm.data import load_text, windows
from mixllm.format.rounded import Rounded
from mixllm.placement import device_name, pick_device, versions
from mixllm.rotation import rotate
from mixllm.rounding import factor_of, round_rows
from mixllm.source import open_source

SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1, 2, 4)
HELD_OUT = 4096
WINDOW = 512


def inputs_of(decoder: Decoder, ids: Tensor, depths: set[int], kinds: tuple[str, ...]) -> dict[str, Tensor]:
    """Layer -> its inputs [T, K] on all of ids, shuffled, in blocks of these numbers."""
    caught: dict[str, list[Tensor]] = {}
    states = [decoder.embed(part) for part in ids.split(4)]
    for i, block in decoder.walk(range(max(depths) + 1)):
        wanted = {n: layer for n, layer in block.linears.items() if i in depths and n.endswith(kinds)}
        hooks = [
            layer.register_forward_pre_hook(
                lambda _, given, name=name: caught.setdefault(name, []).append(given[0].flatten(0, -2))
            )
            for name, layer in wanted.items()
        ]
        states = [block(hidden) for hidden in states]
        for hook in hooks:
            hook.remove()
    order = torch.randperm(ids.numel(), generator=torch.Generator().manual_seed(0))
    return {name: torch.cat(parts)[order] for name, parts in caught.items()}


def compare(weight: Tensor, x: Tensor, config: QuantConfig, name: str) -> dict[str, float | None]:
    """Tokens an input -> GPTQ's error over that of rounding to nearest; None where x is too short."""
    held, rest = x[:HELD_OUT], x[HELD_OUT:]
    bits = torch.full((len(weight),), 4, dtype=torch.uint8, device=weight.device)

    def error(rounded: Rounded) -> float:
        return float((held @ (rotate(rounded.dequantize()) - weight.float()).T).norm())

    nearest = error(round_rows(weight, bits, config.model_copy(update={"rounding": "rtn"}), None))
    found: dict[str, float | None] = {}
    for share in SHARES:
        part = rest[: int(share * weight.shape[1])]
        short = len(part) < int(share * weight.shape[1])
        factor = None if short else factor_of(part.T @ part, config, name)
        found[f"{share:g}"] = None if short else error(round_rows(weight, bits, config, factor)) / nearest
    return found


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--text", required=True)
    parser.add_argument("--samples", type=int, default=24)
    parser.add_argument("--blocks", type=int, nargs="+", default=[3, 15, 27])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    source, device = open_source(args.model), pick_device(args.device)
    decoder = Decoder.open(source, device, torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(source.path)
    ids = windows(load_text(args.text), tokenizer, WINDOW, args.samples, 0)
    x = inputs_of(decoder, ids, set(args.blocks), ("gate_proj", "down_proj"))
    layers = {}
    for name, tokens in x.items():
        weight = source.tensor(f"{name}.weight").float().to(device)
        layers[name] = {"inputs": weight.shape[1], "ratio": compare(weight, tokens, QuantConfig(), name)}
        print(name, layers[name], flush=True)
    result = {
        "date": datetime.date.today().isoformat(),
        "device": device_name(device),
        "versions": versions(),
        "model": Path(args.model).name,
        "text": Path(args.text).name,
        "layers": layers,
    }
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
