"""Which tensors each shard of a checkpoint holds: as transformers' save_pretrained would put them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from huggingface_hub import StateDictSplit, split_state_dict_into_shards_factory

from mixllm.format.config import QuantizedModule

if TYPE_CHECKING:
    from mixllm.source import Source

SHARD_BYTES = 5 * 10**9


class Stored(NamedTuple):
    """A tensor to be written; dtype as safetensors spells it, bytes of its data.

    file: the spool's in which it waits; None for one of the source, and once its shard is written."""

    file: Path | None
    dtype: str
    shape: tuple[int, ...]
    bytes: int


def unchanged(source: Source, modules: Mapping[str, QuantizedModule]) -> dict[str, Stored]:
    """The source's tensors that no quantized layer replaces."""
    names = source.names_but({f"{name}.weight" for name in modules})
    return {name: Stored(None, *source.header(name), source.bytes(name)) for name in names}


def split(stored: Mapping[str, Stored], shard_bytes: int) -> StateDictSplit:
    """The shards by name, in order; of `shard_bytes` at most, but for a tensor that is larger."""
    return split_state_dict_into_shards_factory(
        {name: stored[name] for name in saving_order(stored)},
        get_storage_size=lambda tensor: tensor.bytes,
        # Empty tensors share the null pointer, and save_pretrained keeps what shares memory together.
        get_storage_id=lambda tensor: None if tensor.bytes else 0,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=shard_bytes,
    )


def saving_order(names: Iterable[str]) -> list[str]:
    """The order in which save_pretrained takes tensors: by the names of transformers' own modules."""
    names = list(names)
    # Where files have experts in block_sparse_moe, one by one, transformers has them in mlp.
    moved = any(".block_sparse_moe.experts." in name for name in names)
    return sorted(
        names, key=lambda name: natural(name.replace(".block_sparse_moe.", ".mlp.") if moved else name)
    )


def natural(name: str) -> list[tuple[Any, ...]]:
    """transformers' order of tensor names: layers.2 before layers.10, fc2 before fc10."""
    key: list[tuple[Any, ...]] = []
    for part in name.split("."):
        text = part.rstrip("0123456789")
        number = (int(part[len(text) :]),) if text != part else ()
        key.append((1, text, *number) if text else (0, *number))
    return key
