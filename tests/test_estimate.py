from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mixllm import estimate as module
from mixllm.config import QuantConfig
from mixllm.errors import MixllmError
from mixllm.estimate import Estimate, estimate
from mixllm.needs import needs as needs_of
from mixllm.outline import outline
from mixllm.pipeline import quantize
from tests.models import write_tiny

TEXT = "The quick brown fox jumps over the lazy dog, and then the other way round. " * 40


@pytest.fixture(scope="module", params=["llama", "gpt_neox", "qwen2", "qwen3_moe", "mixtral"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / request.param
    write_tiny(path, request.param, tie=request.param == "llama")
    return path


def needs(model: Path, out: Path, measured: bool = True, **fields: object) -> Estimate:
    return estimate(
        str(model),
        out,
        QuantConfig(**{"window": 256, **fields}),
        device="cpu",
        dtype="auto",
        measured=measured,
    )


def test_the_checkpoint_is_as_large_as_told(model: Path, tmp_path: Path):
    (tmp_path / "text.txt").write_text(TEXT)
    fields = {"calibration": str(tmp_path / "text.txt"), "samples": 4, "window": 40, "bits": 5.5}
    told = needs(model, tmp_path / "out", **fields)
    quantize(str(model), tmp_path / "out", QuantConfig(**fields))
    size = sum(file.stat().st_size for file in (tmp_path / "out").glob("*.safetensors"))
    assert told.checkpoint_bytes == pytest.approx(size, rel=0.02)
    assert told.device == "cpu" and told.checkpoint_bytes < told.disk_bytes < told.free_bytes


def test_more_work_takes_longer(model: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(module, "_rate", lambda *_: 1e9)
    out = tmp_path / "out"
    base = needs(model, out)
    assert needs(model, out, samples=128).seconds > 1.5 * base.seconds
    assert needs(model, out, samples=128).memory_bytes > base.memory_bytes
    assert needs(model, out, measured=False).seconds < base.seconds
    assert needs(model, out, error="rtn").seconds < base.seconds
    assert needs(model, out, measured=False, rounding="rtn", clip=False).seconds == 0
    assert needs(model, out, bits=8).checkpoint_bytes > base.checkpoint_bytes
    little, more = (needs(model, out, widths=(3, 4, 8), bits=bits) for bits in (3.2, 3.8))
    assert little.checkpoint_bytes < more.checkpoint_bytes and little.seconds == more.seconds > base.seconds
    assert needs(model, out, channels=50).checkpoint_bytes == pytest.approx(
        needs(model, out, bits=6).checkpoint_bytes, rel=1e-6
    )


def test_states_that_find_no_room_take_forward_passes(model: Path, tmp_path: Path, monkeypatch):
    """With room for all there is none beside the walk there and that for gradients."""
    monkeypatch.setattr(module, "_rate", lambda *_: 1e9)
    sizes, config = outline(str(model)).sizes, QuantConfig(window=256)
    told = needs_of(sizes, 999, 333, torch.device("cpu"), torch.float32, measured=config.widths)
    assert told.again == 0
    least = needs(model, tmp_path / "out").seconds
    more = replace(told, again=3 * len(sizes.blocks))
    monkeypatch.setattr(module, "needs", lambda *_, **__: more)
    passes = 3 * 2 * sizes.met * config.samples * config.window
    assert needs(model, tmp_path / "out").seconds - least == pytest.approx(module.SLACK * passes / 1e9)


def test_the_rate_is_a_matrix_products():
    rate = module._rate(torch.device("cpu"), torch.float32)
    assert 1e8 < rate < 1e14


def test_a_model_that_is_not_there(tmp_path: Path):
    with pytest.raises(MixllmError, match="/no/model"):
        needs(Path("/no/model"), tmp_path / "out")
