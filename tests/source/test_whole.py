"""A tensor that the files lack is an error wherever a float model is loaded, and no random numbers."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tests.gguf_file import write_gguf
from tests.models import write_tiny
from tests.saying import says

from mixllm.placement import load_float
from mixllm.report.models import load_any
from mixllm.source import open_source

LACKS = "model.layers.1.mlp.up_proj.weight"
CPU = torch.device("cpu")


def test_a_float_model_that_is_measured_against_and_one_that_is_compared(tmp_path: Path) -> None:
    write_tiny(tmp_path, tie=True)  # the head's matrix, which is not there either, is the embedding's
    assert load_float(open_source(str(tmp_path)), CPU, torch.float32).dtype == torch.float32
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors[LACKS]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with says(f"{tmp_path}: tensor {LACKS}: missing"):
        load_float(open_source(str(tmp_path)), CPU, torch.float32)
    with says(f"{tmp_path}: tensor {LACKS}: missing"):
        load_any(str(tmp_path), CPU, torch.float32)


def test_a_gguf_file(tmp_path: Path) -> None:
    file = tmp_path / "tiny.gguf"
    write_gguf(file, tie=True, without=LACKS)
    with says(f"{file}: tensor {LACKS}: missing"):
        open_source(str(file))
