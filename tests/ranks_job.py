"""One process of a run on several, started by tests/test_ranks.py: MODEL OUT MODE."""

from __future__ import annotations

import os
import signal
import sys
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import save_file

from mixllm.blocks import Decoder, Room
from mixllm.config import QuantConfig
from mixllm.errors import MixllmError
from mixllm.plan import choose
from mixllm.progress import Silent
from mixllm.ranks import Ranks, joined
from mixllm.rounding.observed import Observed
from mixllm.rounding.walk import round_model
from mixllm.salience import measure_salience
from mixllm.source import Source
from tests.models import VOCAB

SAMPLES, LENGTH = 6, 40


def main(model: Path, out: Path, mode: str, ranks: Ranks) -> None:
    decoder = Decoder.open(Source(model), torch.device("cpu"), torch.float32)
    ids = torch.randint(4, VOCAB, (SAMPLES, LENGTH), generator=torch.Generator().manual_seed(3))
    config, room = QuantConfig(bits=5), Room(10**9, 0)
    if mode == "lost" and ranks.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if mode == "hangs" and ranks.rank == 1:
        signal.pause()
    with TemporaryDirectory() as work:
        common = {"work": Path(work), "room": room, "batch": 2, "progress": Silent(), "ranks": ranks}
        salience = measure_salience(decoder, ids, config, **common)
        plan = choose(salience, bits=config.bits, channels=None, scope="global", seed=0)
        widths = {name: module.widths for name, module in plan.modules.items()}
        seen: dict[str, Observed] = {}
        rounded = dict(round_model(decoder, ids, widths, config, seen=seen, **common))
    result = {f"{name}.codes": layer.codes for name, layer in rounded.items()}
    result |= {f"{name}.widths": tensor for name, tensor in widths.items()}
    result |= {f"{name}.loss": module.loss[4] for name, module in salience.modules.items()}
    result |= {f"{name}.seen": torch.tensor([o.error, o.peak, o.mean]) for name, o in seen.items()}
    save_file(result, out / f"{ranks.rank}.safetensors")


if __name__ == "__main__":
    wait = timedelta(seconds=5 if sys.argv[3] == "hangs" else 60)
    try:
        with joined(torch.device("cpu"), wait) as ranks:
            main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], ranks)
    except MixllmError as error:
        print(error, file=sys.stderr)
        os._exit(2)
