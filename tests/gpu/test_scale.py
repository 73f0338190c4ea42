"""Large models on GPUs: memory of the host beside that of the device, and two GPUs against one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mixllm.blocks import ON_DEVICE, Decoder, Room, States
from mixllm.config import QuantConfig
from mixllm.plan import Salience
from mixllm.progress import Silent
from mixllm.salience.measure import measure_salience
from mixllm.salience.waiting import waiting_bytes
from mixllm.source import open_source
from tests.models import VOCAB, write_tiny
from tests.test_ranks import assert_as_good

pytestmark = pytest.mark.gpu

SIZES = {"hidden_size": 192, "intermediate_size": 392}
SAMPLES, LENGTH, BLOCKS = 6, 40, 5
TEXT = "The quick brown fox jumps over the lazy dog, and then the other way round. " * 40


def measured(decoder: Decoder, room: Room) -> Salience:
    ids = torch.randint(4, VOCAB, (SAMPLES, LENGTH), generator=torch.Generator().manual_seed(3))
    return measure_salience(decoder, ids, QuantConfig(), room=room, batch=2, progress=Silent())


def test_what_waits_in_host_memory_comes_back(tmp_path: Path) -> None:
    """States in pinned buffers, and candidates of a stretch of several blocks, change nothing."""
    write_tiny(tmp_path, "llama", num_hidden_layers=BLOCKS, **SIZES)
    decoder = Decoder.open(open_source(str(tmp_path)), torch.device("cuda"), torch.float32)
    boundary, beside = SAMPLES * LENGTH * 192 * 4, waiting_bytes(decoder.weights[0])
    room = Room(boundary, 3 * boundary + 3 * beside, reserved=0)
    assert room.boundaries(boundary, beside) == 3
    plenty, little = measured(decoder, ON_DEVICE), measured(decoder, room)
    for name, module in plenty.modules.items():
        for width, loss in module.loss.items():
            torch.testing.assert_close(little.modules[name].loss[width], loss, rtol=1e-3, atol=0)


def test_states_on_their_way_are_few() -> None:
    """However far behind the device is: 30 tensors of 16 MB, each with some milliseconds of work."""
    size, device = 2**22, torch.device("cuda")
    with States(device, Room(0, 40 * 4 * size)) as states:
        states.put(0, (torch.zeros(size, device=device) for _ in range(30)), soon=True)
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before, slow = torch.cuda.memory_reserved(), torch.rand(4096, 4096, device=device)
        for tensor in states.take(0):
            for _ in range(5):
                slow = slow @ slow  # soon all infinite, which takes as long
            tensor.add_(slow.view(-1)[0])
            del tensor
        torch.cuda.synchronize()
        assert torch.cuda.max_memory_reserved() - before < 10 * 4 * size + 4 * slow.nbytes


def test_two_gpus_give_what_one_gives(tmp_path: Path) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    write_tiny(tmp_path / "model", "llama", num_hidden_layers=3, **SIZES)
    (tmp_path / "text.txt").write_text(TEXT)
    given = ["--calibration", tmp_path / "text.txt", "--samples", SAMPLES, "--window", LENGTH, "--bits", 5]
    command = ["-m", "mixllm", "quantize", tmp_path / "model", "--device", "cuda", *given]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2]
    for name, start in (("one", []), ("two", torchrun)):
        whole = [sys.executable, *start, *command, "-o", tmp_path / name]
        subprocess.run([str(part) for part in whole], check=True, timeout=300, env=os.environ)
    assert_as_good(tmp_path / "one", tmp_path / "two")
