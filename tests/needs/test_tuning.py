"""What tuning takes was told: by the allocator's own count, and as a GPU took it."""

from __future__ import annotations

import gc
from collections.abc import Callable
from contextlib import ExitStack
from itertools import accumulate
from pathlib import Path

import pytest
import torch
from torch.autograd.profiler import profile

from mixllm.blocks import Decoder
from mixllm.config import PROFILES
from mixllm.errors import MixllmError
from mixllm.needs import Sizes, limits, tuning_needs
from mixllm.needs.tuning import way_back
from mixllm.progress import Silent
from mixllm.source import open_source
from mixllm.tuning.step import Step
from mixllm.tuning.tune import open_blocks, tune_scales
from tests.models import VOCAB, write_tiny
from tests.needs.machine import BF16, CUDA, llama, on_gpu
from tests.tuning.test_tune import rounded_model


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


@pytest.mark.parametrize(("codes", "taken"), [(True, 3.52e9), (False, 2.34e9)])
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
    sizes = Sizes([named] * 30, 576, 49152, 49152 * 576 + 576)
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
    told -= limits.BASE_HOST + limits.HELD + 4 * sizes.ends + (1 + codes) * sizes.weights
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
