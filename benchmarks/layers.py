"""What each step of rounding does to single layers: their output error on tokens that it has not seen.

    python benchmarks/layers.py MODEL --calibration TEXT [--blocks 2 11 20 29] [--json FILE]

All 4-bit, weights only. Three quarters of the windows give the Hessian, the rest measure
||X (Wq - W)'||^2, over that of GPTQ with order and clip, as the geometric mean over layers. "typical" leaves
out tokens with more than ten times the median input energy, which can hold most of a layer's input. "capped"
rounds by a Hessian in which no token counts for more than the median one.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer

from mixllm.blocks import Block, Decoder
from mixllm.config import PROFILES, QuantConfig
from mixllm.data import load_text, windows
from mixllm.files import write_json
from mixllm.rotation import rotate
from mixllm.rounding import factor_of, round_rows
from mixllm.source import open_source

BASE = "GPTQ, order, clip"
OUTLIER = 10
# Rows are independent: every so many of them say enough.
STRIDE = 6
VARIANTS: dict[str, dict[str, Any]] = {
    "RTN": {"rounding": "rtn", "clip": False},
    "clip": {"rounding": "rtn"},
    "GPTQ": {"clip": False, "order": False},
    "GPTQ, order": {"clip": False},
    BASE: {},
    "capped": {},
    "damping .001": {"damping": 0.001},
    "damping .1": {"damping": 0.1},
    "1 sweep": {"sweeps": 1},
    "2 sweeps": {"sweeps": 2},
    "4 sweeps": {"sweeps": 4},
}
Errors = dict[str, dict[str, dict[str, float]]]


def inputs(block: Block, states: list[Tensor]) -> dict[str, Tensor]:
    """What each linear of the block reads, [T, K]."""
    found: dict[str, list[Tensor]] = {name: [] for name in block.linears}

    def keep(name: str) -> Any:
        return lambda _, given: found[name].append(given[0].flatten(0, 1))

    hooks = [linear.register_forward_pre_hook(keep(name)) for name, linear in block.linears.items()]
    for hidden in states:
        block(hidden)
    for hook in hooks:
        hook.remove()
    return {name: torch.cat(parts) for name, parts in found.items()}


def errors_of(linear: nn.Linear, seen: Tensor, unseen: Tensor) -> Errors:
    """profile -> variant -> {"all", "typical"} -> ||X (Wq - W)'||^2."""
    weight = linear.weight[::STRIDE]
    energy = seen.square().sum(dim=1)
    share = (energy.median() / energy).clamp(max=1)
    plain, capped = seen.T @ seen, (seen * share[:, None]).T @ seen
    energy = unseen.square().sum(dim=1)
    tests = {"all": unseen, "typical": unseen[energy <= OUTLIER * energy.median()]}
    bits = torch.full((len(weight),), 4, dtype=torch.uint8)
    found: Errors = {}
    for profile, format in PROFILES.items():
        found[profile] = {}
        for name, fields in VARIANTS.items():
            config = QuantConfig(format=format, **{"sweeps": 0, **fields})
            factor = factor_of((capped if name == "capped" else plain).clone(), config, name)
            values = round_rows(weight, bits, config, factor).dequantize()
            difference = (rotate(values) if format.rotation == "hadamard" else values) - weight
            found[profile][name] = {
                kind: float((x @ difference.T).square().sum()) for kind, x in tests.items()
            }
    return found


def summary(layers: dict[str, Errors]) -> dict[str, Any]:
    """profile -> variant -> kind -> the ratio to BASE: its mean, and in how many layers it is below 1."""

    def one(profile: str, name: str, kind: str) -> dict[str, float]:
        ratios = [e[profile][name][kind] / e[profile][BASE][kind] for e in layers.values()]
        mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
        return {"ratio": mean, "layers_better": sum(r < 1 for r in ratios), "layers": len(ratios)}

    return {p: {n: {k: one(p, n, k) for k in ("all", "typical")} for n in VARIANTS} for p in PROFILES}


@torch.no_grad()
def main() -> None:
    args = arguments()
    source = open_source(args.model)
    decoder = Decoder.open(source, torch.device("cpu"), torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(source.path)
    ids = windows(load_text(args.calibration), tokenizer, args.window, args.samples, 0)
    states = [decoder.embed(part) for part in ids.split(args.samples // 4)]
    layers: dict[str, Errors] = {}
    for i in range(max(args.blocks) + 1):
        with decoder.block(i) as block:
            if i in args.blocks:
                seen, unseen = inputs(block, states[:3]), inputs(block, states[3:])
                for name, linear in block.linears.items():
                    layers[name] = errors_of(linear, seen[name], unseen[name])
                print(f"block {i} done", flush=True)
            states = [block(hidden) for hidden in states]
    found = summary(layers)
    for profile, variants in found.items():
        print(f"| {profile} | all tokens | typical tokens |\n|---|---|---|")
        for name, kinds in variants.items():
            print(f"| {name} | " + " | ".join(f"{kind['ratio']:.3f}" for kind in kinds.values()) + " |")
    if args.json:
        about = {"calibration": f"{args.samples} windows of {args.window}", "blocks": args.blocks}
        write_json(Path(args.json), {**about, "base": BASE, "summary": found, "layers": layers})


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="directory, hub name or GGUF file")
    parser.add_argument("--calibration", required=True)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--blocks", type=int, nargs="+", default=[2, 11, 20, 29])
    parser.add_argument("--json")
    return parser.parse_args()


if __name__ == "__main__":
    main()
