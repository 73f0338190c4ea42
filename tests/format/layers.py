"""Rounded layers and whole checkpoints for the tests of everything that stores or loads them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tests import shapes
from tests.models import write_tiny

from mixllm.config import PROFILES, Format, QuantConfig
from mixllm.format.checkpoint import write_checkpoint
from mixllm.format.mixed import MixedWeight
from mixllm.format.pack import pack
from mixllm.format.rounded import Rounded
from mixllm.format.split import SHARD_BYTES
from mixllm.rounding import round_rows
from mixllm.source import Source, open_source

LAYER = re.compile(r".*\.layers\.\d+\..*(proj|w[123]|query_key_value|dense(_h_to_4h|_4h_to_h)?)\.weight")


def rounded_layer(
    format: Format, n: int, k: int, share8: float = 0.3, seed: int = 0, size: float = 1.0
) -> Rounded:
    """A random layer rounded to nearest; a small `size` makes group scales too small for float16."""
    config = QuantConfig(format=format, rounding="rtn", clip=False)
    return round_rows(shapes.weight(n, k, seed) * size, shapes.widths(n, share8, seed), config, None)


def layer_of_all_widths(format: Format, n: int, k: int, seed: int = 0, size: float = 1.0) -> Rounded:
    """As rounded_layer, with rows of all widths."""
    config = QuantConfig(format=format, rounding="rtn", clip=False)
    return round_rows(shapes.weight(n, k, seed) * size, shapes.any_widths(n, seed), config, None)


def packed_layers(
    source: Source, format: Format, share8: float | None = 0.3
) -> Iterator[tuple[str, MixedWeight]]:
    """Every linear layer of the source's blocks, rounded to nearest; share8 None: to all widths."""
    config = QuantConfig(format=format, rounding="rtn", clip=False)
    for number, name in enumerate(name for name in source.names if LAYER.fullmatch(name)):
        weight = source.tensor(name)
        n = len(weight)
        bits = shapes.any_widths(n, number) if share8 is None else shapes.widths(n, share8, number)
        yield name.removesuffix(".weight"), pack(round_rows(weight, bits, config, None), format)


def write_quantized(
    out: Path,
    architecture: str = "llama",
    format: Format = PROFILES["fast"],
    *,
    share8: float | None = 0.3,
    tie: bool = False,
    dtype: torch.dtype = torch.float32,
    shard_bytes: int = SHARD_BYTES,
    **sizes: Any,
) -> Path:
    """A tiny model's checkpoint in out / "quantized", made here; the float model is in out / "float"."""
    write_tiny(out / "float", architecture, tie=tie, dtype=dtype, **sizes)
    source = open_source(str(out / "float"))
    checkpoint = out / "quantized"
    checkpoint.mkdir()
    write_checkpoint(checkpoint, source, format, packed_layers(source, format, share8), shard_bytes)
    return checkpoint
