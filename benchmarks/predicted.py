"""Does the predicted loss rank plans as measuring does? Random plans of many budgets, both figures of each.

    python benchmarks/predicted.py OUT --model FLOAT --calibration TRAIN --text TEST [--plans 20]

OUT: a checkpoint that keeps its salience. Each plan has a random budget between 4.1 and 6 bits and draws its
rows, in a random share of layers by chance and in the others by salience, so that plans of one budget differ
too. Each is rounded, measured by KL to the float model on the same windows, and both figures are written to
OUT/mixllm/predicted.json with Spearman's rank correlation; `mixllm report` shows them. --rounding rtn is
quicker than what the salience of GPTQ's errors predicts.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from dataclasses import replace
from pathlib import Path

import torch
from accuracy_models import with_layers
from torch import Tensor

from mixllm.config import QuantConfig
from mixllm.evaluate import mean_and_error, measure
from mixllm.files import read_json, write_json
from mixllm.pipeline import open_job
from mixllm.plan import ModulePlan, Plan, Salience, choose
from mixllm.records import PREDICTED, SALIENCE, SUMMARY
from mixllm.report.curve import predicted
from mixllm.report.models import Bench
from mixllm.writing import rounded_layers

BUDGETS = (4.1, 6.0)


def random_plan(salience: Salience, draw: random.Random) -> Plan:
    """Rows by salience in some layers, drawn by chance in the others."""
    bits = round(draw.uniform(*BUDGETS), 2)
    best = choose(salience, bits=bits)
    chance = choose(salience, bits=bits, scope="random", seed=draw.randrange(2**31))
    share = draw.random()
    modules: dict[str, ModulePlan] = {
        name: (best if draw.random() < share else chance).modules[name] for name in best.modules
    }
    return replace(best, modules=modules)


def spearman(a: list[float], b: list[float]) -> float:
    """Rank correlation of values without ties."""

    def ranks(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64).argsort().argsort().double()

    return float(torch.corrcoef(torch.stack([ranks(a), ranks(b)]))[0, 1])


def main() -> None:
    args = arguments()
    out = Path(args.out)
    salience = Salience.load(out / SALIENCE)
    kept = QuantConfig.model_validate(read_json(out / SUMMARY)["config"])
    fields = {"calibration": args.calibration, "samples": args.samples, "window": args.window}
    fields = {**fields, "rounding": args.rounding, "clip": args.rounding == "gptq", "sweeps": 0, "tune": 0}
    config = kept.model_copy(update=fields)
    job = open_job(args.model, config, device=args.device, work=Path(args.work))
    bench = Bench.open(str(job.source.path), args.text, args.window, args.windows, args.device, "auto")
    draw = random.Random(args.seed)
    began, plans = time.monotonic(), []
    for number in range(args.plans):
        plan = random_plan(salience, draw)
        with torch.no_grad():
            model = with_layers(bench.reference, rounded_layers(job, plan, config), config.format, "auto")
        kl, kl_error = mean_and_error(measure({"plan": model}, bench.reference, bench.ids)["plan"].kl)
        loss = sum(predicted(plan, salience).values())
        plans.append({"bits": plan.payload_bits, "predicted": loss, "kl": kl, "kl_error": kl_error})
        print(f"{time.monotonic() - began:.0f} s: {json.dumps(plans[-1])}", flush=True)
        if number > 1:
            correlation = spearman([p["predicted"] for p in plans], [p["kl"] for p in plans])
            found = {
                "text": f"{len(bench.ids)} windows of {args.window} of {Path(args.text).name}",
                "rounding": args.rounding,
                "error": salience.error,
                "seed": args.seed,
                "rank_correlation": correlation,
                "plans": plans,
            }
            write_json(out / PREDICTED, found)
    print(f"rank correlation {correlation:.3f} over {len(plans)} plans")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out")
    parser.add_argument("--model", required=True)
    parser.add_argument("--calibration", required=True)
    parser.add_argument("--text", required=True)
    parser.add_argument("--plans", type=int, default=20)
    parser.add_argument("--rounding", choices=("rtn", "gptq"), default="gptq")
    parser.add_argument("--samples", type=int, default=16, help="calibration windows")
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", default=".work", help="where a GGUF file's conversion is kept")
    return parser.parse_args()


if __name__ == "__main__":
    main()
