"""Models of real shapes with random weights, for benchmarks to which only sizes matter."""

from __future__ import annotations

import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

# Shards that are made and written at once.
WRITERS = 6

# As their config.json on the hub has them.
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {
        "hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 6,
        "num_key_value_heads": 2, "vocab_size": 4096, "tie_word_embeddings": True,
    },
    "small": {
        "hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 6, "num_attention_heads": 16,
        "num_key_value_heads": 8, "vocab_size": 16384,
    },
    "llama-3.2-1b": {
        "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": True,
    },
    "llama-3.1-8b": {
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": 128256,
    },
    "llama-3.1-70b": {
        "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64,
        "num_key_value_heads": 8, "vocab_size": 128256,
    },
    "llama-3.1-405b": {
        "hidden_size": 16384, "intermediate_size": 53248, "num_hidden_layers": 126,
        "num_attention_heads": 128, "num_key_value_heads": 8, "vocab_size": 128256,
    },
}  # fmt: skip


def write_model(path: Path, shape: str, blocks: int | None = None) -> None:
    """Write config.json and bfloat16 shards, one a block; weights normal with deviation 0.02, norms 1.

    blocks: how many of the shape's blocks; None: all.
    """
    fields = dict(SHAPES[shape])
    fields["num_hidden_layers"] = blocks or fields["num_hidden_layers"]
    config = LlamaConfig(**fields, max_position_embeddings=8192, rope_theta=500000.0, dtype="bfloat16")
    path.mkdir(parents=True)
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(path)
    auto: Any = AutoModelForCausalLM
    with torch.device("meta"):
        model = auto.from_config(config)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    shards = list(_shards(model))
    with ThreadPoolExecutor(WRITERS, thread_name_prefix="shard") as threads:
        sizes = threads.map(partial(_write, path, device), range(len(shards)), shards)
        total = sum(sizes)
    index = {name: _name(number) for number, names in enumerate(shards) for name in names}
    text = json.dumps({"metadata": {"total_size": total}, "weight_map": index})
    (path / "model.safetensors.index.json").write_text(text)


def write_tokenizer(path: Path) -> None:
    """One that knows no word, for what asks for a tokenizer and is given ids."""
    words = Tokenizer(WordLevel({"?": 0}, unk_token="?"))
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?", pad_token="?").save_pretrained(path)


def _shards(model: Any) -> Iterable[dict[str, Tensor]]:
    """Parameters by shard: one a block, one for the rest."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, parameter in model.named_parameters():
        parts = name.split(".")
        found.setdefault(parts[2] if parts[1] == "layers" else "rest", {})[name] = parameter
    return found.values()


def _name(number: int) -> str:
    return f"model-{number:05}.safetensors"


def _write(path: Path, device: torch.device, number: int, parameters: dict[str, Tensor]) -> int:
    """Write a shard; returns its tensors' bytes."""
    generator = torch.Generator(device).manual_seed(number)
    tensors = {name: _random(value, generator, device) for name, value in parameters.items()}
    save_file(tensors, path / _name(number), {"format": "pt"})
    return sum(tensor.nbytes for tensor in tensors.values())


def _random(like: Tensor, generator: torch.Generator, device: torch.device) -> Tensor:
    if like.dim() == 1:
        return torch.ones(like.shape, dtype=torch.bfloat16)
    values = torch.empty(like.shape, dtype=torch.bfloat16, device=device)
    return values.normal_(0, 0.02, generator=generator).cpu()
