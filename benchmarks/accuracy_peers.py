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
from concurrent.futures import Future, ThreadPoolExecutor, wait
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
    with TemporaryDirectory(dir=args.work) as saliences, ThreadPoolExecutor(args.processes) as pool:
        models = Models(args, Path(saliences))

        def keep(line: Line, made: tuple[nn.Module, dict[str, Any]]) -> None:
            model, facts[line.name] = made
            measured.update(
                measure({line.name: model}, models.bench.reference, models.bench.test, batch=args.batch)
            )
            found = result(args, in_order(measured, wanted), facts, time.monotonic() - began)
            found["claims"] = claims(measured, facts)
            if args.json:
                Path(args.json).write_text(json.dumps(found, indent=1) + "\n")
            kl = found["rows"][[row["name"] for row in found["rows"]].index(line.name)]["kl"]
            print(f"{time.monotonic() - began:.0f} s: {line.name}: KL {kl:.4f}, {facts[line.name]}", flush=True)

        waiting = {pool.submit(models.weights, line.name): line for line in wanted if line.format is None}
        failed: list[str] = []

        def take(done: Future[Path]) -> None:
            line = waiting.pop(done)
            if done.exception() is None:
                keep(line, models.peer(done.result()))
            else:
                failed.append(f"{line.name}: {done.exception()}")
                print(failed[-1], flush=True)

        for line in wanted:
            if line.format is not None:
                keep(line, models.mixed(line))
            for done in [future for future in waiting if future.done()]:
                take(done)
        while waiting:
            for done in wait(waiting, return_when="FIRST_COMPLETED").done:
                take(done)
    print(table(json.loads(Path(args.json).read_text())))
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
