"""mixllm beside other quantizers: one float model, the same calibration tokens, the same test windows.

    python benchmarks/accuracy_peers.py MODEL --calibration TRAIN --text TEST --json FILE --packages DIR

Every peer of peers_weights.py makes its weights in a process of its own, which finds its packages in DIR;
mixllm's lines are made here, each with as many 8-bit rows as a number of true bits allows. All are measured
by the code that accuracy.py measures with. The peers' activations stay floats, mixllm's are int8.
Weights are kept in the working directory and taken from there when they are there. FILE is written anew
after every line. accuracy_join.py joins several runs of one model.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, ThreadPoolExecutor, wait
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from accuracy import PRECISION, chosen, in_order, result
from accuracy_arguments import parsed, shared_arguments
from accuracy_claims import table
from accuracy_peers_claims import claims
from accuracy_peers_models import LINES, Line, Models
from torch import nn

from mixllm.evaluate import Measurement, measure


def main() -> None:
    args = arguments()
    torch.set_float32_matmul_precision(PRECISION)
    wanted = chosen(LINES, args.only)
    began = time.monotonic()
    measured: dict[str, Measurement] = {}
    facts: dict[str, dict[str, Any]] = {}
    found: dict[str, Any] = {}
    with TemporaryDirectory(dir=args.work) as saliences, ThreadPoolExecutor(args.processes) as pool:
        models = Models(args, Path(saliences))
        for name, model, takes in as_made(models, wanted, pool):
            measured |= measure({name: model}, models.bench.reference, models.bench.test, batch=args.batch)
            facts[name] = takes
            seconds = time.monotonic() - began
            found = result(args, in_order(measured, wanted), facts, seconds)
            found["claims"] = claims(measured, facts)
            if args.json:
                Path(args.json).write_text(json.dumps(found, indent=1) + "\n")
            print(f"{seconds:.0f} s: {name}: KL {float(measured[name].kl.mean()):.4f}, {takes}", flush=True)
    print(table(found))


def as_made(
    models: Models, wanted: Sequence[Line], pool: Executor
) -> Iterator[tuple[str, nn.Module, dict[str, Any]]]:
    """Name, model and what it takes: mixllm's in their order, peers' as they come.

    A peer that fails says why itself, and keeps no other line from being made; SystemExit at the end.
    """
    waiting = {pool.submit(models.weights, line.name): line.name for line in wanted if line.format is None}
    mixed = [line for line in wanted if line.format is not None]
    failed = []
    while mixed or waiting:
        if mixed:
            line = mixed.pop(0)
            yield line.name, *models.mixed(line)
        for done in wait(waiting, 0 if mixed else None, FIRST_COMPLETED).done:
            name = waiting.pop(done)
            if done.exception() is None:
                yield name, *models.peer(done.result())
            else:
                failed.append(f"{name}: {done.exception()}")
    if failed:
        raise SystemExit("\n".join(failed))


def arguments() -> argparse.Namespace:
    parser = shared_arguments(__doc__)
    parser.add_argument(
        "--packages", nargs="*", default=[], help="directories that the peers' packages are installed in"
    )
    parser.add_argument("--processes", type=int, default=1, help="peers that run at once")
    return parsed(parser)


if __name__ == "__main__":
    main()
