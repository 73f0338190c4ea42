"""Whether a checkpoint was made of the float model that it is to be measured against.

Perplexities, KL and agreement come out of any two models of one vocabulary; what quantization cost is told
by those of a checkpoint and its own float model alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedConfig

from mixllm.errors import MixllmError
from mixllm.format.shards import find_shards, read_headers
from mixllm.loading import open_config
from mixllm.progress import Progress
from mixllm.source import Source

_SIZES = ("num_hidden_layers", "hidden_size", "vocab_size")


def require_kind(checkpoint: Path, source: Source) -> None:
    """Raise MixllmError where the checkpoint in a directory is of another kind or size than the float model,
    and where it is no checkpoint."""
    if message := _other_kind(checkpoint, source):
        raise MixllmError(f"{message}; give the one it was made of")


def note_origin(checkpoint: Path, source: Source, progress: Progress) -> None:
    """Note a checkpoint of another kind than the float model's, or whose norms or biases, which quantizing
    leaves as they are, are not the float model's.

    Only headers and vectors are read. Raises MixllmError where it is no checkpoint.
    """
    if message := _other_kind(checkpoint, source) or _other_weights(checkpoint, source):
        progress.note(f"{message}: not all between the two is quantization's")


def _other_kind(checkpoint: Path, source: Source) -> str | None:
    own, theirs = _kind(open_config(checkpoint)), _kind(source.config)
    if own == theirs:
        return None
    return f"{checkpoint}: it is a {_said(own)}, but the float model in {source.path} is a {_said(theirs)}"


def _other_weights(checkpoint: Path, source: Source) -> str | None:
    for name, header in read_headers(find_shards(checkpoint)).items():
        # Under a quantized matrix's name lies a guard of no elements.
        if len(header.shape) == 1 and name in source and source.header(name)[1] == header.shape:
            with safe_open(header.file, framework="pt") as tensors:
                vector = tensors.get_tensor(name)
            if not _same(vector, source.tensor(name)):
                return (
                    f"{checkpoint}: was not made of the float model in {source.path}, whose {name} is another"
                )
    return None


def _kind(config: PreTrainedConfig) -> tuple[Any, ...]:
    model = config.get_text_config()
    return model.model_type, *(getattr(model, size, None) for size in _SIZES)


def _said(kind: tuple[Any, ...]) -> str:
    name, blocks, hidden, vocabulary = kind
    return f"{name} with {blocks} blocks of {hidden} and {vocabulary} tokens"


def _same(a: Tensor, b: Tensor) -> bool:
    """Though one was stored in fewer bits."""
    dtype = min(a.dtype, b.dtype, key=lambda kind: kind.itemsize)
    return torch.equal(a.to(dtype), b.to(dtype))
