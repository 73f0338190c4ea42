"""A model's directory is data: nothing in it is run, and nobody is asked whether it may be."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mixllm.loading import load
from mixllm.report.models import load_any
from mixllm.source import open_source
from mixllm.texts import open_tokenizer
from tests.format.layers import write_quantized
from tests.saying import says

CODE = """
from pathlib import Path
from transformers import PreTrainedConfig, PreTrainedTokenizerFast
Path({mark!r}).touch()
class Config(PreTrainedConfig):
    model_type = "unheard-of"
class Reader(PreTrainedTokenizerFast):
    pass
"""
OPENINGS: dict[str, Callable[[Path], object]] = {
    "quantized": load,
    "source": lambda path: open_source(str(path)),
    "compared": lambda path: load_any(str(path), torch.device("cpu"), torch.float32),
    "tokenizer": open_tokenizer,
}


@pytest.mark.parametrize("opening", OPENINGS)
def test_code_beside_a_model_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opening: str
) -> None:
    path, mark = write_quantized(tmp_path, "llama"), tmp_path / "ran"
    config = json.loads((path / "config.json").read_text())
    config |= {"model_type": "unheard-of", "auto_map": {"AutoConfig": "code.Config"}}
    if opening in ("source", "compared"):
        del config["quantization_config"]
    (path / "config.json").write_text(json.dumps(config))
    (path / "code.py").write_text(CODE.format(mark=str(mark)))
    reader = {"tokenizer_class": "Reader", "auto_map": {"AutoTokenizer": ["code.Reader", None]}}
    (path / "tokenizer_config.json").write_text(json.dumps(reader))
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with says(str(path)):
        OPENINGS[opening](path)
    assert not mark.exists()
