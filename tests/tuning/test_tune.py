"""Tuned scales bring a quantized model nearer to the float one, in every kind of block."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mixllm.blocks import Decoder
from mixllm.config import PROFILES, Format, QuantConfig
from mixllm.evaluate import measure
from mixllm.format.rounded import Rounded
from mixllm.nn import MixLinear
from mixllm.progress import Silent
from mixllm.rounding import round_rows
from mixllm.source import open_source
from mixllm.tuning import step, tune_scales
from mixllm.tuning.tune import open_blocks
from tests.mixtures import is_expert, write_with_idle_expert
from tests.models import ARCHITECTURES, MIXTURES, VOCAB, write_tiny


def rounded_model(path: Path, format: Format) -> tuple[Decoder, dict[str, Rounded]]:
    decoder = Decoder.open(open_source(str(path)), torch.device("cpu"), torch.float32)
    config = QuantConfig(format=format, rounding="rtn", clip=False)
    layers = {}
    for i in range(len(decoder)):
        with decoder.block(i) as block:
            for name, linear in block.linears.items():
                bits = torch.full((linear.out_features,), 4, dtype=torch.uint8)
                bits[::5] = 8
                layers[name] = round_rows(linear.weight, bits, config, None)
    return decoder, layers


def divergence(path: Path, layers: dict[str, Rounded], format: Format, ids: Tensor) -> float:
    from transformers import AutoModelForCausalLM

    reference, model = (AutoModelForCausalLM.from_pretrained(path) for _ in range(2))
    for name, layer in layers.items():
        mixed = MixLinear.from_rounded(layer, format, model.get_submodule(name).bias)
        mixed.backend = "reference"
        model.set_submodule(name, mixed)
    return float(measure({"m": model}, reference, ids)["m"].kl.mean())


def windows(count: int) -> Tensor:
    return torch.randint(4, VOCAB, (count, 24), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_divergence_falls_on_every_architecture(architecture: str, tmp_path: Path) -> None:
    write_tiny(tmp_path, architecture)
    format, ids = PROFILES["fast"], windows(7)
    decoder, layers = rounded_model(tmp_path, format)
    tuned = tune_scales(decoder, ids, layers, format, epochs=6, seed=0, progress=Silent())
    assert list(tuned) == list(layers)
    before, after = (divergence(tmp_path, found, format, ids) for found in (layers, tuned))
    assert after < 0.95 * before
    for name, layer in layers.items():
        assert torch.equal(layer.codes, tuned[name].codes)
        factors = tuned[name].scales / layer.scales
        assert 0.8 < float(factors.min()) <= float(factors.max()) < 1.25


def test_codes_are_learned_too_where_that_is_wanted(tmp_path: Path) -> None:
    write_tiny(tmp_path, "llama")
    format, ids = PROFILES["fast"], windows(7)
    decoder, layers = rounded_model(tmp_path, format)
    found = {
        codes: tune_scales(
            decoder,
            ids,
            layers,
            format,
            epochs=40,
            calibration=ids if codes else None,
            seed=0,
            progress=Silent(),
        )
        for codes in (False, True)
    }
    scales, both = (divergence(tmp_path, found[codes], format, ids) for codes in (False, True))
    assert both < 0.5 * scales
    changed = [(found[True][name].codes != layer.codes).float().mean() for name, layer in layers.items()]
    assert 0 < float(torch.stack(changed).mean()) < 0.2
    assert all(torch.equal(found[False][name].codes, layer.codes) for name, layer in layers.items())


def test_experts_are_tuned_too_and_one_that_no_token_reaches_is_left(tmp_path: Path) -> None:
    write_with_idle_expert(tmp_path, MIXTURES[0])
    decoder, layers = rounded_model(tmp_path, PROFILES["fast"])
    tuned = tune_scales(decoder, windows(5), layers, PROFILES["fast"], epochs=1, seed=0, progress=Silent())
    experts = [name for name in layers if is_expert(name)]
    moved = {name: not torch.equal(tuned[name].scales, layers[name].scales) for name in experts}
    assert any(moved.values())
    assert not all(moved.values())


def test_the_decoder_is_as_before_afterwards(tmp_path: Path) -> None:
    write_tiny(tmp_path, "llama")
    format, ids = PROFILES["paper"], windows(5)
    decoder, layers = rounded_model(tmp_path, format)
    first, second = (
        tune_scales(decoder, ids, layers, format, epochs=1, seed=3, progress=Silent()) for _ in range(2)
    )
    for name in layers:
        assert torch.equal(first[name].scales, second[name].scales)
    with decoder.block(0) as block:
        assert all(type(linear) is torch.nn.Linear for linear in block.linears.values())


def test_gradient_is_that_of_the_whole_model(tmp_path: Path) -> None:
    """A step's gains move against the gradient that autograd finds through all blocks at once."""
    from transformers import AutoModelForCausalLM

    from mixllm.tuning.layer import TunedLinear
    from mixllm.tuning.step import RATES

    write_tiny(tmp_path, "qwen3")
    format, ids = PROFILES["fast"], windows(3)
    decoder, layers = rounded_model(tmp_path, format)
    reference, model = (AutoModelForCausalLM.from_pretrained(tmp_path) for _ in range(2))
    model.requires_grad_(False)
    for name, layer in layers.items():
        model.set_submodule(name, TunedLinear(layer, format, None))
    q, p = (m(ids).logits[:, :-1].log_softmax(-1) for m in (model, reference))
    (p.exp() * (p - q)).sum(-1).mean().backward()
    tuned = tune_scales(decoder, ids, layers, format, epochs=1, seed=0, progress=Silent())
    for name, layer in layers.items():
        moved = (tuned[name].scales / layer.scales)[:, 0].log()
        gradient = model.get_submodule(name).gain.grad
        clear = gradient.abs() > 1e-6
        # Adam's first step is the learning rate against the sign.
        torch.testing.assert_close(moved[clear], -RATES[0] * gradient.sign()[clear], rtol=0.02, atol=1e-6)


def test_the_scale_of_gradients_changes_nothing_in_float32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tiny(tmp_path, "llama")
    format, ids = PROFILES["fast"], windows(5)
    decoder, layers = rounded_model(tmp_path, format)
    found = []
    for scale in (step.SCALE, 1.0):
        monkeypatch.setattr(step, "SCALE", scale)
        how: dict[str, Any] = {"epochs": 3, "calibration": ids, "seed": 0, "progress": Silent()}
        found.append(tune_scales(decoder, ids, layers, format, **how))
    for name in layers:
        assert torch.equal(found[0][name].codes, found[1][name].codes)
        assert torch.equal(found[0][name].scales, found[1][name].scales)


def test_the_scale_of_gradients_keeps_them_from_vanishing_in_float16(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Places whose first moment is 0 after a step: nearly none; with a far smaller scale, many."""
    write_tiny(tmp_path, "llama", max_position_embeddings=512)
    ids = torch.randint(4, VOCAB, (2, 300), generator=torch.Generator().manual_seed(1))
    _, layers = rounded_model(tmp_path, PROFILES["fast"])
    decoder = Decoder.open(open_source(str(tmp_path)), torch.device("cpu"), torch.float16)
    target = decoder.embed(ids)
    for _, block in decoder.walk(range(len(decoder))):
        target = block(target)
    silent = []
    for scale in (step.SCALE, step.SCALE / 2**24):
        monkeypatch.setattr(step, "SCALE", scale)
        with ExitStack() as stack:
            blocks = open_blocks(stack, decoder, layers, PROFILES["fast"], ids)
            one = step.Step(decoder, blocks)
            one(ids, target, 1.0)
            moments = [adam.state[place]["exp_avg"] for adam, place in places(one)]
            silent.append(float(torch.cat([(moment == 0).flatten() for moment in moments]).float().mean()))
    assert silent[0] < 1e-3
    assert silent[1] > 0.1


def places(one: step.Step) -> list[tuple[torch.optim.Adam, torch.Tensor]]:
    """All places that a step learns, and the Adam that moves them."""
    return [(adam, place) for adam in one._adams for place in adam.param_groups[1]["params"]]


def test_rates_fall_from_whole_to_a_step_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tiny(tmp_path, "llama")
    decoder, layers = rounded_model(tmp_path, PROFILES["fast"])
    parts: list[float] = []
    sizes: list[int] = []

    def noted(_: object, ids: Tensor, target: Tensor, part: float) -> None:
        assert len(target) == len(ids)
        parts.append(part)
        sizes.append(len(ids))

    monkeypatch.setattr(step.Step, "__call__", noted)
    tune_scales(decoder, windows(6), layers, PROFILES["fast"], epochs=2, seed=0, progress=Silent())
    assert sizes == [4, 2] * 2
    assert parts == pytest.approx([1, 13 / 16, 10 / 16, 7 / 16])
