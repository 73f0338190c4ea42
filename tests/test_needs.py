"""Memory told beforehand: what it depends on, and a run's own beside it."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from itertools import accumulate
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.autograd.profiler import profile

from mixllm import needs as module
from mixllm.blocks import Decoder
from mixllm.blocks.room import stretches
from mixllm.config import PROFILES
from mixllm.errors import MixllmError
from mixllm.needs import Needs, Sizes, needs, tuning_needs, way_back
from mixllm.progress import Silent
from mixllm.source import open_source
from mixllm.tuning.step import Step
from mixllm.tuning.tune import open_blocks, tune_scales
from tests.models import VOCAB, write_tiny
from tests.tuning.test_tune import rounded_model

CUDA, BF16 = torch.device("cuda"), torch.bfloat16
GB = 10**9
MIXLLM = (sys.executable, "-m", "mixllm")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def llama(hidden: int, wide: int, blocks: int) -> Sizes:
    small = hidden // 4
    layers = {"q": hidden, "k": small, "v": small, "o": hidden}
    block = {f"attention.{name}": (n, hidden) for name, n in layers.items()}
    block |= {"mlp.gate": (wide, hidden), "mlp.up": (wide, hidden), "mlp.down": (hidden, wide)}
    return Sizes([block] * blocks, hidden, 128256, 2 * 128256 * hidden)


def on_gpu(
    monkeypatch: pytest.MonkeyPatch, sizes: Sizes, gpu: float = 80, host: float = 120, samples: int = 128
) -> Needs:
    def memory(*_: object) -> tuple[int, int]:
        return int(gpu * GB), int(gpu * GB)

    monkeypatch.setattr(torch.cuda, "mem_get_info", memory)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda *_: 0)
    free = SimpleNamespace(available=int(host * GB), total=int(host * GB))
    monkeypatch.setattr(module.psutil, "virtual_memory", lambda: free)
    return needs(sizes, samples * 2048, 2048, CUDA, BF16, measured=(4, 8))


def test_an_8b_model_stays_within_its_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = llama(4096, 14336, 32)
    found = on_gpu(monkeypatch, sizes)
    assert found.batch == 16384
    assert found.device <= 22 * GB and found.host <= 16 * GB
    boundary = 128 * 2048 * 4096 * 2
    states = (1 + len(stretches(32, found.room.boundaries(boundary)))) * boundary
    assert states <= found.room.device + found.room.host and found.temporary == 0
    assert found.host == pytest.approx(11.63 * GB, rel=0.02)  # as an H200's run took
    assert found.again == 32 and on_gpu(monkeypatch, llama(2048, 8192, 2)).again == 0


def test_states_that_a_gpu_holds_pin_no_memory_of_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    few = on_gpu(monkeypatch, llama(4096, 14336, 8))
    half = on_gpu(monkeypatch, llama(4096, 14336, 32), samples=64)  # as each of two processes has it
    for found in (few, half):
        assert found.room.host == 0 and found.device <= 22 * GB and found.host < 2 * GB
    # Otherwise the host has what the GPU cannot hold, and little more.
    many = on_gpu(monkeypatch, llama(4096, 14336, 32))
    boundary = 128 * 2048 * 4096 * 2
    assert many.device == 22 * GB and many.room.soon == boundary
    assert 0 < many.room.host < (1 + len(stretches(32, 0))) * boundary - many.room.device + 4 * GB


def test_memory_hardly_grows_with_depth(monkeypatch: pytest.MonkeyPatch) -> None:
    few, many = (on_gpu(monkeypatch, llama(8192, 28672, blocks)) for blocks in (8, 80))
    assert many.device == few.device
    # Ten times the blocks: under four times the boundaries.
    assert many.host + many.temporary < 4 * (few.host + few.temporary)


def test_files_are_for_what_half_of_the_host_cannot_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = llama(8192, 28672, 80)
    plenty, some, little = (on_gpu(monkeypatch, sizes, host=host) for host in (240, 60, 20))
    assert plenty.temporary == 0 and 14 * GB < plenty.host < 120 * GB
    assert some.temporary > 0 and 29 * GB < some.host <= 31 * GB
    assert little.temporary > some.temporary and 13 * GB < little.host <= 14 * GB


def test_a_small_gpu_takes_fewer_tokens_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = llama(4096, 14336, 32)
    assert on_gpu(monkeypatch, sizes, gpu=10).batch < 16384
    assert on_gpu(monkeypatch, sizes, gpu=10).device <= 10 * GB
    with pytest.raises(MixllmError, match=r"one block and one window of 2048 tokens take \d\.\d GB"):
        on_gpu(monkeypatch, sizes, gpu=5)


def test_a_large_block_may_take_more_than_states_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    found = on_gpu(monkeypatch, llama(16384, 53248, 126))
    assert 22 * GB < found.device < 80 * GB and found.room.device == 0


def test_tuning_has_all_layers_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = llama(4096, 14336, 32)
    on_gpu(monkeypatch, sizes)
    gpu, host = tuning_needs(sizes, 128, 2048, CUDA, BF16)
    assert gpu > sizes.weights and host > 128 * 2048 * 4096 * 2 + sizes.weights
    cpu = torch.device("cpu")
    assert tuning_needs(sizes, 128, 2048, cpu, BF16)[0] == 0
    assert tuning_needs(sizes, 128, 2048, cpu, BF16)[1] > gpu
    on_gpu(monkeypatch, sizes, gpu=200)
    with_codes, host_with_codes = tuning_needs(sizes, 128, 2048, CUDA, BF16, codes=True)
    # Multipliers and gradients of one block are beside what all blocks keep.
    assert with_codes == gpu + 11 * sizes.weights + 8 * sizes.weights // 32
    assert host_with_codes == host + sizes.weights
    on_gpu(monkeypatch, sizes, gpu=12)
    with pytest.raises(MixllmError, match=r"tune: all rounded layers take \d+\.\d GB, 10\.8 GB can be had"):
        tuning_needs(sizes, 128, 2048, CUDA, BF16)


@pytest.mark.parametrize(("codes", "taken"), [(True, 4.64e9), (False, 3.38e9)])
def test_what_tuning_takes_on_a_gpu_was_told(
    monkeypatch: pytest.MonkeyPatch, codes: bool, taken: float
) -> None:
    """SmolLM2-135M in float32, 24 windows of 2,048 tokens: bytes of tensors that an H200 had at most."""
    block = {"q": (576, 576), "k": (192, 576), "v": (192, 576), "o": (576, 576)}
    block |= {"gate": (1536, 576), "up": (1536, 576), "down": (576, 1536)}
    named = {
        f"model.layers.0.{'self_attn' if n in 'qkvo' else 'mlp'}.{n}_proj": shape
        for n, shape in block.items()
    }
    sizes = Sizes([named] * 30, 576, 49152, 49152 * 576 + 576, heads=9)
    on_gpu(monkeypatch, sizes)
    told, _ = tuning_needs(sizes, 24, 2048, CUDA, torch.float32, codes=codes)
    assert told == pytest.approx(taken, rel=0.1)


@pytest.mark.parametrize("dtype", [torch.float32, BF16])
@pytest.mark.parametrize(("codes", "windows", "length"), [(False, 1, 530), (True, 2, 250), (True, 1, 65)])
def test_what_goes_back_through_a_block_was_told(
    tmp_path: Path, dtype: torch.dtype, codes: bool, windows: int, length: int
) -> None:
    """By the allocator's own count, in a step of tuning; the widest input is whole blocks of 128."""
    heads = {"num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 32}
    write_tiny(tmp_path, "llama", hidden_size=288, intermediate_size=1024, **heads)
    _, layers = rounded_model(tmp_path, PROFILES["fast"])
    decoder = Decoder.open(open_source(str(tmp_path)), torch.device("cpu"), dtype)
    ids = torch.randint(4, VOCAB, (windows, length))
    with ExitStack() as stack:
        calibration = ids[:1] if codes else None
        blocks = open_blocks(stack, decoder, layers, PROFILES["fast"], calibration)
        step = Step(decoder, blocks)
        hidden = decoder.embed(ids)
        gradient = torch.randn_like(step._forward(hidden))
        step._backward(gradient)  # Adam's moments are there from now on
        step._forward(hidden)
        took = peak(lambda: step._backward(gradient))
    block = {name: layers[name].shape for name in blocks[0][1]}
    sizes = Sizes([block], decoder.hidden_size, decoder.vocabulary, decoder.outside)
    told = way_back(block, sizes, windows * length, dtype.itemsize, codes)
    assert took == pytest.approx(told, rel=0.15)


@pytest.mark.parametrize("codes", [False, True])
@pytest.mark.parametrize(("vocabulary", "windows", "length"), [(16384, 8, 70), (VOCAB, 9, 250)])
def test_what_tuning_takes_was_told(
    tmp_path: Path, codes: bool, vocabulary: int, windows: int, length: int
) -> None:
    """From first to last, by the allocator's own count: where logits take the most, where a way back does."""
    heads = {"num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 32}
    write_tiny(tmp_path, "llama", hidden_size=288, intermediate_size=1024, vocab_size=vocabulary, **heads)
    decoder, layers = rounded_model(tmp_path, PROFILES["fast"])
    ids = torch.randint(4, VOCAB, (windows, length))
    how = {"calibration": ids[:4] if codes else None, "progress": Silent()}
    took = peak(lambda: tune_scales(decoder, ids, layers, PROFILES["fast"], epochs=1, seed=0, **how))
    shapes = [(name, layer.shape) for name, layer in layers.items()]
    blocks = [{n: shape for n, shape in shapes if n.startswith(f"model.layers.{i}.")} for i in range(3)]
    sizes = Sizes(blocks, decoder.hidden_size, decoder.vocabulary, decoder.outside)
    _, told = tuning_needs(sizes, windows, length, decoder.device, decoder.dtype, codes)
    # What was there before, codes at the end, when the most is over, and what malloc holds.
    told -= module.BASE_HOST + module.HELD + 4 * sizes.ends + (1 + codes) * sizes.weights
    back = max(way_back(block, sizes, min(4, windows) * length, 4, codes) for block in blocks)
    told -= (1 + codes) * back // 2
    assert took == pytest.approx(told, rel=0.1)


def peak(call: Callable[[], object]) -> int:
    """The most bytes that the call has of what it allocates."""
    gc.collect()  # what earlier tests left would be counted as freed by the call
    with profile(profile_memory=True) as found:
        call()
    events = [e for e in found.kineto_results.events() if e.name() == "[memory]"]
    return max(accumulate(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())))


@pytest.mark.parametrize(
    "how",
    [
        [],
        ["--error", "rtn", "--rounding", "rtn", "--no-clip"],
        ["--tune", "1"],
        ["--tune", "2", "--tune-codes", "--tune-samples", "8"],
    ],
)
def test_a_run_takes_no_tenth_more_than_was_told(tmp_path: Path, how: list[str]) -> None:
    """In a process of its own, whose memory nothing else has touched; with a tokenizer and a text as small as
    these it takes some 50 MB less before the model is read than most do."""
    sizes = {"hidden_size": 384, "intermediate_size": 1536, "vocab_size": 16384, "head_dim": 64}
    write_tiny(tmp_path / "model", "llama", max_position_embeddings=1024, **sizes)
    (tmp_path / "text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 1500)
    arguments = [
        *("quantize", str(tmp_path / "model"), "-o", str(tmp_path / "out"), "--device", "cpu"),
        *("--calibration", str(tmp_path / "text.txt"), "--samples", "4", "--window", "1024"),
        *how,
    ]
    told = json.loads(mixllm_says(*arguments, "--dry-run", "--json"))["memory_bytes"]
    process = subprocess.Popen([*MIXLLM, *arguments, "--quiet"], env=ENVIRONMENT)
    status, peak = Path(f"/proc/{process.pid}/status"), 0
    while process.poll() is None:
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
        peak = max(peak, sum(int(fields.get(name, "0 kB").split()[0]) for name in ("RssAnon", "RssShmem")))
        time.sleep(0.01)
    assert process.returncode == 0
    assert 0.75 * told < peak * 1024 < 1.1 * told


def mixllm_says(*arguments: str) -> str:
    return subprocess.check_output([*MIXLLM, *arguments], text=True, env=ENVIRONMENT)
