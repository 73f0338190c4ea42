"""On a GPU, weights that are read ahead and the work that is queued on those before them."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mixllm.blocks import Decoder
from mixllm.source import open_source
from tests.models import VOCAB, write_tiny

pytestmark = pytest.mark.gpu

CYCLES = 50_000_000  # some 30 ms


def test_queued_work_keeps_a_dropped_blocks_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading is slower than queueing and, while the work still waits, quicker than the GPU."""
    write_tiny(tmp_path, "llama", hidden_size=384, intermediate_size=1024, num_hidden_layers=5)
    decoder = Decoder.open(open_source(str(tmp_path)), torch.device("cuda"), torch.float32)
    ids = torch.randint(4, VOCAB, (2, 33), generator=torch.Generator().manual_seed(0))
    expected = hidden = decoder.embed(ids)
    for i in range(len(decoder)):
        with decoder.block(i) as block:
            expected = block(expected)
    bring = decoder._bring

    def slowly(tensor: Tensor) -> Tensor:
        time.sleep(0.001)
        return bring(tensor)

    monkeypatch.setattr(decoder, "_bring", slowly)
    for _, block in decoder.walk(range(len(decoder))):
        torch.cuda._sleep(CYCLES)
        hidden = block(hidden)
    assert torch.equal(hidden, expected)
