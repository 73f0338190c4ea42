"""Runs on several processes, for tests/test_ranks.py: python -m tests.ranks_job MODEL OUT SIZE MODE ...

MODE: whole (salience, plan, rounding), quantize (the public call), nearest (the same without calibration),
lost or hangs (process 1 dies or sleeps).
Each run's processes are forked from this one, which has imported everything once. Process R of a run leaves
OUT/SIZE-MODE/R.safetensors, R.err (its standard error) and R.code (its exit code).
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import traceback
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path

import torch
from safetensors.torch import save_file

from mixllm.blocks import Decoder, Room
from mixllm.config import QuantConfig
from mixllm.errors import MixllmError
from mixllm.format.pack import unpack
from mixllm.pipeline import quantize
from mixllm.plan import choose
from mixllm.progress import Silent
from mixllm.ranks import Ranks, joined
from mixllm.rounding.observed import Observed
from mixllm.rounding.walk import round_model
from mixllm.salience.measure import measure_salience
from mixllm.salience.waiting import waiting_bytes
from mixllm.source import Source
from tests.models import VOCAB

SAMPLES, LENGTH = 6, 40


TEXT = "The quick brown fox jumps over the lazy dog, and then the other way round. " * 20


# No layer is calibrated so.
NEAREST = {"rounding": "rtn", "clip": False, "error": "rtn"}


def quantized(model: Path, out: Path, mode: str) -> None:
    """The whole job: OUT/result, and at every process the summary that it was given."""
    text = model.parent / "text.txt"
    how = NEAREST if mode == "nearest" else {}
    config = QuantConfig(bits=5, samples=SAMPLES, window=LENGTH, calibration=str(text), **how)
    summary = quantize(str(model), out / "result", config, device="cpu")
    (out / f"{os.environ['RANK']}.json").write_text(json.dumps(asdict(summary)))


def main(model: Path, out: Path, mode: str, ranks: Ranks) -> None:
    decoder = Decoder.open(Source(model), torch.device("cpu"), torch.float32)
    ids = torch.randint(4, VOCAB, (SAMPLES, LENGTH), generator=torch.Generator().manual_seed(3))
    config = QuantConfig(bits=5)
    if mode == "lost" and ranks.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if mode == "hangs" and ranks.rank == 1:
        signal.pause()
    common = {"batch": 2, "progress": Silent(), "ranks": ranks}
    # So little that a stretch of two blocks is gone through again, and their candidates wait.
    boundary = ranks.share(ids).numel() * decoder.hidden_size * 4
    (scratch := out / f"{ranks.rank}.states").mkdir()
    room = Room(3 * boundary + waiting_bytes(max(decoder.weights)), 0, scratch)
    assert room.boundaries(boundary, waiting_bytes(max(decoder.weights))) == 2
    salience = measure_salience(decoder, ids, config, room=room, **common)
    scratch.rmdir()
    plan = choose(salience, bits=config.bits, channels=None, scope="global", seed=0)
    widths = {name: module.widths for name, module in plan.modules.items()}
    seen: dict[str, Observed] = {}
    layers = round_model(decoder, ids, widths, config, seen=seen, **common)
    rounded = {name: unpack(layer, config.format) for name, layer in layers}
    result = {f"{name}.codes": layer.codes for name, layer in rounded.items()}
    result |= {f"{name}.widths": tensor for name, tensor in widths.items()}
    result |= {f"{name}.loss": module.loss[4] for name, module in salience.modules.items()}
    result |= {f"{name}.seen": torch.tensor([o.error, o.peak, o.mean]) for name, o in seen.items()}
    save_file(result, out / f"{ranks.rank}.safetensors")


def run(model: Path, out: Path, size: int, mode: str) -> None:
    out.mkdir(parents=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(size):
        if (child := os.fork()) == 0:
            os.environ |= {
                "WORLD_SIZE": str(size), "RANK": str(rank), "LOCAL_RANK": str(rank),
                "LOCAL_WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
            }  # fmt: skip
            os.dup2(os.open(out / f"{rank}.err", os.O_WRONLY | os.O_CREAT), 2)
            os._exit(one(model, out, mode))
        children.append(child)
    for rank, child in enumerate(children):
        if mode == "hangs" and rank == 1:
            os.kill(child, signal.SIGKILL)
        (out / f"{rank}.code").write_text(str(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])))


def one(model: Path, out: Path, mode: str) -> int:
    wait = timedelta(seconds=5 if mode == "hangs" else 60)
    try:
        if mode in ("quantize", "nearest"):
            quantized(model, out, mode)
            return 0
        with joined(torch.device("cpu"), wait) as ranks:
            main(model, out, mode, ranks)
    except MixllmError as error:
        print(error, file=sys.stderr, flush=True)
        return 2
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    model, out = Path(sys.argv[1]), Path(sys.argv[2])
    (model.parent / "text.txt").write_text(TEXT)
    for size, mode in zip(sys.argv[3::2], sys.argv[4::2], strict=True):
        run(model, out / f"{size}-{mode}", int(size), mode)
