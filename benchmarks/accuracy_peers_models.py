"""Makes the models that accuracy_peers.py measures: mixllm's under a number of true bits, and the peers'."""

from __future__ import annotations

import argparse
import copy
import json
import os
import subprocess
import sys
import time
from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accuracy import Bench, chosen, shared
from accuracy_models import file_name, with_layers
from accuracy_variants import AFTER, OUR_SCORE
from peers_weights import PEERS
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoTokenizer

from mixllm.choosing import sizes
from mixllm.config import KERNEL_WIDTHS, PROFILES, Format, QuantConfig
from mixllm.data import load_text, windows
from mixllm.errors import MixllmError
from mixllm.source import open_source

FAST = PROFILES["fast"]
ROWS = FAST.model_copy(update={"weight_scale": "row"})
# Budgets are tried in steps of so many parts of a bit.
PARTS = 1000


@dataclass(frozen=True)
class Line:
    """One line of the table. format None: a peer's; bits: the most true bits a weight that it may take."""

    name: str
    format: Format | None = None
    bits: float = 0
    after: str = ""
    widths: tuple[int, ...] = KERNEL_WIDTHS


def ours(
    format: Format, what: str, bits: float, after: str = "", widths: tuple[int, ...] = KERNEL_WIDTHS
) -> Line:
    if widths != KERNEL_WIDTHS:
        what += f" of {'-'.join(map(str, widths))}"
    return Line(f"{what}, at most {bits:g} bits{after}", format, bits, after, widths)


TUNED = ", swept, tuned"
MORE = (3, 4, 5, 6, 8)
LINES = [
    ours(FAST, "fast", 4.25),
    ours(ROWS, "fast, row scales", 4.135),
    ours(ROWS, "fast, row scales", 4.25),
    ours(FAST, "fast", 4.25, TUNED),
    ours(ROWS, "fast, row scales", 4.135, TUNED),
    ours(ROWS, "fast, row scales", 4.25, TUNED),
    ours(FAST, "fast", 4.5),
    ours(FAST, "fast", 4.5, TUNED),
    *(ours(FAST, "fast", bits, after, MORE) for after in ("", TUNED) for bits in (4.135, 4.25)),
    *(Line(name) for name in PEERS),
]


class Models:
    """Makes every line as a model."""

    def __init__(self, args: argparse.Namespace, saliences: Path) -> None:
        self.args, self.saliences = args, saliences
        self.scored: dict[str, float] = {}
        self.source = open_source(args.model).path
        tokenizer, seed = AutoTokenizer.from_pretrained(self.source), QuantConfig().seed
        ids = windows(load_text(args.calibration), tokenizer, args.window, args.samples, seed)
        self.ids = Path(args.work) / "calibration.safetensors"
        save_file({"ids": ids}, self.ids)

    @cached_property
    def bench(self) -> Bench:
        """Opened when it is first asked for, so that peers can begin before."""
        bench = Bench(self.args, self.saliences)
        assert torch.equal(bench.job.ids, load_file(self.ids)["ids"])
        return bench

    def mixed(self, line: Line) -> tuple[nn.Module, dict[str, Any]]:
        """One of mixllm's, and what it takes."""
        fields = {**OUR_SCORE, **AFTER[line.after], **shared(self.args)}
        config = QuantConfig.model_validate({**fields, "format": line.format, "widths": line.widths})
        scoring, began = self.score(config), time.monotonic()
        config = config.model_copy(update={"bits": self.budget(config, line.bits)})
        plan = self.bench.builder.plan(config)
        layers = self.bench.builder.round(plan, config)
        size = sizes(plan, config)
        model = with_layers(self.bench.reference, layers, config.format, self.args.backend)
        return model, {
            "payload_bits": size.payload_bits,
            "bits": size.bits,
            "seconds_to_make": round(scoring + time.monotonic() - began, 1),
        }

    def score(self, config: QuantConfig) -> float:
        """Measure the salience that lines of the config's format need, once; the seconds that took."""
        if file_name(config) not in self.scored:
            began = time.monotonic()
            lines = [line for line in chosen(LINES, self.args.only) if line.format == config.format]
            widths = sorted({width for line in lines for width in line.widths})
            self.bench.score(config.model_copy(update={"widths": tuple(widths)}))
            self.scored[file_name(config)] = time.monotonic() - began
        return self.scored[file_name(config)]

    def budget(self, config: QuantConfig, most: float) -> float:
        """The most payload bits whose true bits are no more than `most`."""

        def bits(parts: int) -> float:
            tried = config.model_copy(update={"bits": parts / PARTS})
            return sizes(self.bench.builder.plan(tried), tried).bits

        budgets = range(PARTS * config.widths[0], PARTS * config.widths[-1] + 1)
        found = bisect_right(budgets, most, key=bits)
        if not found:
            raise MixllmError(f"{most} true bits: this format takes {bits(budgets[0]):.3f} at least")
        return budgets[found - 1] / PARTS

    def weights(self, name: str) -> Path:
        """A peer's weights, made by its own process unless they are there."""
        out = Path(self.args.work) / f"{name}.safetensors"
        if not out.exists():
            script = Path(__file__).with_name("peers_weights.py")
            paths = [*filter(None, [os.environ.get("PYTHONPATH")]), *self.args.packages]
            # -P: this directory has a kernels.py, which is also the name of a package that transformers uses.
            command = [sys.executable, "-P", script, name, self.source, self.ids, out]
            subprocess.run(
                [*map(str, command), "--device", self.args.device],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
                check=True,
            )
        return out

    @torch.no_grad()
    def peer(self, weights: Path) -> tuple[nn.Module, dict[str, Any]]:
        """The float model with a peer's weights, and what they take."""
        tensors = load_file(weights)
        missing = {f"{name}.weight" for name in self.bench.job.shapes} - tensors.keys()
        if missing:
            raise MixllmError(f"{weights.name}: {min(missing)} is missing; delete the file and make it again")
        model = copy.deepcopy(self.bench.reference)
        for name, value in tensors.items():
            model.get_parameter(name).copy_(value)
        with safe_open(weights, "pt") as file:
            return model, {"peer": True, **json.loads(file.metadata()["facts"])}
