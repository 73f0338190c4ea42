"""What is known of a model whose weights are not there yet: its config, and the sizes that follow from it."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download

from mixllm.blocks.skeleton import find_blocks, linears, skeleton
from mixllm.experts import routed
from mixllm.files import at_home
from mixllm.needs import Sizes
from mixllm.source import is_gguf, open_source
from mixllm.source.config import read_config


@dataclass(frozen=True)
class _About:
    """A model of which only the config is known; its files hold whatever a model of this kind may hold."""

    path: Path
    config: Any

    def __contains__(self, name: str) -> bool:
        return True


@dataclass(frozen=True)
class Outline:
    """A model's config, its sizes, the weights of its head, the bytes of what is not quantized, and those of
    a conversion that is to come."""

    config: Any
    sizes: Sizes
    head: int
    other_bytes: int
    conversion_bytes: int


def outline(model: str) -> Outline:
    """Of a directory, a hub name or a GGUF file. Raises MixllmError where there is no such model or it has no
    blocks to quantize."""
    path, config, conversion_bytes = _config(model)
    about: Any = _About(path, config)
    whole = skeleton(about, torch.device("meta"), torch.float32)
    prefix, blocks = find_blocks(whole, about)
    layers = [linears(block, f"{prefix}.{i}") for i, block in enumerate(blocks)]
    shapes = [{n: (layer.out_features, layer.in_features) for n, layer in b.items()} for b in layers]
    count = sum(p.numel() for p in whole.parameters())
    head = whole.get_output_embeddings().weight.numel()
    text = about.config.get_text_config()
    if text.tie_word_embeddings:
        count -= head
    sizes = Sizes(
        shapes,
        hidden=text.hidden_size,
        vocabulary=text.vocab_size,
        ends=count - sum(p.numel() for block in blocks for p in block.parameters()),
        routed=routed(whole, text),
    )
    stored = getattr(about.config, "dtype", None) or torch.float32
    return Outline(about.config, sizes, head, (count - sizes.weights) * stored.itemsize, conversion_bytes)


def _config(model: str) -> tuple[Path, Any, int]:
    """Where the model is, its config, and the bytes of a conversion that is to come."""
    path = at_home(model)
    if is_gguf(path):
        from mixllm.source.converted import place_of
        from mixllm.source.gguf import converted_bytes, open_gguf, read_gguf_config

        if not place_of(path).is_dir():
            opened = open_gguf(path)
            return path, read_gguf_config(path, opened), converted_bytes(opened)
    elif not path.exists():
        # Of a model on the hub only the config; if that fails, the full download says best why.
        with suppress(OSError, ValueError):
            found = Path(hf_hub_download(model, "config.json")).parent
            return found, read_config(found), 0
    source = open_source(model)
    return source.path, source.config, 0
