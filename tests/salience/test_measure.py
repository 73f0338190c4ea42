"""Salience against the paper's formula, computed the naive way from weight gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from mixllm import fixed
from mixllm.blocks import ON_DEVICE, Block, Decoder, Room
from mixllm.blocks.room import passes_again, stretches, stretches_that_fit
from mixllm.config import PROFILES, WIDTHS, QuantConfig, Rounding
from mixllm.plan import Salience
from mixllm.progress import Silent
from mixllm.salience.measure import measure_salience
from mixllm.salience.waiting import waiting_bytes
from mixllm.source import open_source
from tests.models import VOCAB, write_tiny
from tests.salience.test_candidates import errors as errors_of

SAMPLES, LENGTH = 5, 19


@pytest.fixture(scope="module", params=["llama", "qwen2", "gpt_neox"])
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module]:
    path = tmp_path_factory.mktemp(request.param)
    return path, write_tiny(path, request.param, tie=request.param == "llama")


def ids() -> Tensor:
    return torch.randint(4, VOCAB, (SAMPLES, LENGTH), generator=torch.Generator().manual_seed(3))


def measured(path: Path, config: QuantConfig, batch: int = 2, room: Room = ON_DEVICE) -> Salience:
    decoder = Decoder.open(open_source(str(path)), torch.device("cpu"), torch.float32)
    return measure_salience(decoder, ids(), config, room=room, batch=batch, progress=Silent())


def tap(seen: dict[str, tuple[Tensor, Tensor]], name: str) -> Any:
    def hook(_: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        output.retain_grad()
        seen[name] = inputs[0].detach()[0], output

    return hook


def naive(model: nn.Module, config: QuantConfig) -> dict[str, dict[int, Tensor]]:
    """S_c or F_c of every linear in the blocks, from gradients of one sample at a time."""
    layers = {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear) and ".layers." in f".{name}"
    }
    errors = {name: errors_of(layer.weight.detach(), config, None) for name, layer in layers.items()}
    total = {name: {width: torch.zeros(len(e[0])) for width in WIDTHS} for name, e in errors.items()}
    for sample in ids():
        seen: dict[str, tuple[Tensor, Tensor]] = {}
        hooks = [layer.register_forward_hook(tap(seen, name)) for name, layer in layers.items()]
        for layer in layers.values():
            layer.weight.requires_grad_(True).grad = None
        model(sample[None], labels=sample[None]).loss.backward()
        for hook in hooks:
            hook.remove()
        for name, layer in layers.items():
            for width, error in zip(WIDTHS, errors[name], strict=True):
                if config.score == "taylor":
                    assert layer.weight.grad is not None
                    a = (layer.weight.grad * error).sum(dim=1)
                    total[name][width] += (a + a.square() / 2).abs() / SAMPLES
                else:
                    x, y = seen[name]
                    assert y.grad is not None
                    per_token = y.grad[0] * (LENGTH - 1) * (x @ error.T)
                    total[name][width] += per_token.square().sum(dim=0) / 2 / (SAMPLES * LENGTH)
    return total


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("score", ["taylor", "fisher"])
@pytest.mark.parametrize("near", [1e-4, 5e-3], ids=["float32", "fixed-point"])
def test_equals_the_formula(
    tiny: tuple[Path, nn.Module], monkeypatch: pytest.MonkeyPatch, near: float, score: str, profile: str
) -> None:
    """near: of a loss, or of the layer's largest."""
    monkeypatch.setattr(fixed, "quick", lambda: near > 1e-4)
    path, model = tiny
    config = QuantConfig.model_validate(
        {"format": PROFILES[profile], "score": score, "error": "rtn", "widths": WIDTHS}
    )
    found, expected = measured(path, config), naive(model, config)
    assert list(found.modules) == list(expected)
    for name, module in found.modules.items():
        assert module.in_features == model.get_submodule(name).in_features
        for width in WIDTHS:
            floor = near * float(expected[name][width].abs().max())
            torch.testing.assert_close(module.loss[width], expected[name][width], rtol=near, atol=floor)


def test_does_not_depend_on_the_batch(tiny: tuple[Path, nn.Module], tmp_path: Path) -> None:
    config = QuantConfig(error="gptq")
    one, all_ = (measured(tiny[0], config, batch) for batch in (1, SAMPLES))
    for name, module in one.modules.items():
        torch.testing.assert_close(module.loss[4], all_.modules[name].loss[4], rtol=2e-2, atol=1e-9)


def test_gptq_candidates_leave_nothing_behind(tiny: tuple[Path, nn.Module], tmp_path: Path) -> None:
    found = measured(tiny[0], QuantConfig(error="gptq"))
    assert list(tmp_path.iterdir()) == []
    four = sum(float(m.loss[4].sum()) for m in found.modules.values())
    eight = sum(float(m.loss[8].sum()) for m in found.modules.values())
    assert 0 < eight < 0.02 * four


def test_gptq_error_predicts_less_loss_than_rtn(tiny: tuple[Path, nn.Module], tmp_path: Path) -> None:
    total = {
        error: sum(
            float(m.loss[4].sum())
            for m in measured(tiny[0], QuantConfig.model_validate({"error": error})).modules.values()
        )
        for error in ("gptq", "rtn")
    }
    assert total["gptq"] < total["rtn"]


def test_gptq_error_does_not_follow_how_the_model_is_rounded(
    tiny: tuple[Path, nn.Module], tmp_path: Path
) -> None:
    plain, nearest = (measured(tiny[0], QuantConfig(rounding=r)) for r in ("gptq", "rtn"))
    for name, module in plain.modules.items():
        assert torch.equal(module.loss[4], nearest.modules[name].loss[4])


@pytest.mark.parametrize("fit", [0, 1, 2, 3, 4])
def test_does_not_depend_on_the_room(tiny: tuple[Path, nn.Module], tmp_path: Path, fit: int) -> None:
    """Boundaries on disk, and those made a second time, give the same bits."""
    config = QuantConfig(error="gptq")
    boundary = SAMPLES * LENGTH * open_source(str(tiny[0])).config.hidden_size * 4
    plenty = measured(tiny[0], config)
    little = measured(tiny[0], config, room=Room(fit * boundary, 0, tmp_path))
    assert list(tmp_path.iterdir()) == []
    for name, module in plenty.modules.items():
        for width in config.widths:
            assert torch.equal(module.loss[width], little.modules[name].loss[width])


def counted_calls(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """A list that gets, at every call of a block from now on, whether gradients are wanted of its input."""
    calls: list[bool] = []
    forward = Block.__call__

    def counted(block: Block, hidden: Tensor) -> Tensor:
        calls.append(hidden.requires_grad)
        return forward(block, hidden)

    monkeypatch.setattr(Block, "__call__", counted)
    return calls


@pytest.mark.parametrize("error", ["gptq", "rtn"])
def test_where_all_fits_a_block_goes_there_and_back_once(
    tiny: tuple[Path, nn.Module], monkeypatch: pytest.MonkeyPatch, error: Rounding
) -> None:
    """Its Hessians come from the walk there; a second forward is for gradients."""
    calls = counted_calls(monkeypatch)
    measured(tiny[0], QuantConfig(error=error), batch=SAMPLES)
    depth = open_source(str(tiny[0])).config.num_hidden_layers
    assert calls == [False] * depth + [True] * depth


@pytest.mark.parametrize("error", ["gptq", "rtn"])
@pytest.mark.parametrize(("boundaries", "wait"), [(0, 0), (4, 0), (4, 1), (4, 2), (6, 0), (6, 5), (99, 99)])
def test_blocks_are_gone_through_again_as_often_as_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, boundaries: int, wait: int, error: Rounding
) -> None:
    """Beside the walk there and the way back, which every block has once: for states, and for Hessians."""
    write_tiny(tmp_path / "model", "llama", num_hidden_layers=5, hidden_size=264, intermediate_size=300)
    decoder = Decoder.open(open_source(str(tmp_path / "model")), torch.device("cpu"), torch.float32)
    boundary = SAMPLES * LENGTH * 264 * 4
    beside = waiting_bytes(decoder.weights[0], WIDTHS, error)
    room = Room(boundaries * boundary + wait * beside, 0, tmp_path)
    calls = counted_calls(monkeypatch)
    measured(tmp_path / "model", QuantConfig(error=error), batch=SAMPLES, room=room)
    cut, leaving = stretches_that_fit(5, room, boundary, beside)
    assert calls.count(True) == 5
    assert calls.count(False) == 5 + passes_again(cut, leaving, seen=error == "gptq")


@given(st.integers(1, 130), st.integers(-2, 140))
def test_boundaries_are_kept_as_near_as_fits(blocks: int, fit: int) -> None:
    cut = stretches(blocks, fit)
    assert [i for stretch in cut for i in stretch] == list(range(blocks))
    assert all(len(stretch) for stretch in cut)
    fewest = next(m for m in range(1, blocks + 1) if sum(range(m + 1)) >= blocks)
    assert len(cut) == min(blocks, max(fit, fewest))
    # While the way back is in a stretch: its own boundaries, and the first of each before it.
    assert max(j + len(stretch) for j, stretch in enumerate(cut)) == len(cut)


@given(st.integers(1, 90), st.integers(0, 500), st.integers(1, 9), st.integers(0, 9))
def test_what_blocks_leave_is_kept_where_it_fits(blocks: int, most: int, boundary: int, beside: int) -> None:
    cut, leaving = stretches_that_fit(blocks, Room(most // 3, most - most // 3), boundary, beside)
    longest = max(map(len, cut))
    assert leaving in (0, longest - 1, blocks)
    assert (1 + len(cut)) * boundary + leaving * beside <= most or not leaving
    # Otherwise there would have been no room.
    fewest = len(stretches(blocks, 0))
    assert leaving >= longest - 1 or most < (1 + fewest) * boundary + (fewest - 1) * beside
    assert leaving == blocks or most < (1 + blocks) * boundary + blocks * beside


@pytest.mark.parametrize("blocks", [1, 4, 7])
def test_no_more_boundaries_are_there_than_were_counted(tmp_path: Path, blocks: int) -> None:
    """With room for those, for the candidates of a stretch and what is on its way, and no disk."""
    write_tiny(tmp_path, "llama", num_hidden_layers=blocks, hidden_size=264, intermediate_size=300)
    cut = stretches(blocks, 0)
    decoder = Decoder.open(open_source(str(tmp_path)), torch.device("cpu"), torch.float32)
    boundary, beside = SAMPLES * LENGTH * 264 * 4, waiting_bytes(decoder.weights[0])
    room = Room((1 + len(cut)) * boundary + (len(cut) - 1) * beside)
    assert stretches_that_fit(blocks, room, boundary, beside) == (cut, max(map(len, cut)) - 1)
    measured(tmp_path, QuantConfig(), room=room)
