"""Writing a checkpoint: a directory that Hugging Face tools expect, in bounded memory.

Layers arrive block by block and wait in a spool on disk. Once all are there the final shards are filled
in the order and with the sizes that transformers' save_pretrained uses, so that loading and saving again
gives the same bytes. What a shard has taken is deleted from the spool. A process that dies leaves whole
files only, and assemble() goes on from them.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import StateDictSplit
from safetensors import safe_open
from torch import Tensor

from mixllm.config import Format
from mixllm.errors import MixllmError
from mixllm.files import read_json, write_atomically, write_json
from mixllm.format.config import QuantizedModule, quantization_config, read_config
from mixllm.format.early import Early
from mixllm.format.mixed import MixedWeight
from mixllm.format.shards import Header, read_headers, save
from mixllm.format.split import SHARD_BYTES, Stored, split, unchanged
from mixllm.format.spool import Spool
from mixllm.format.validate import validate
from mixllm.index import INDEX

if TYPE_CHECKING:
    from mixllm.source import Source

__all__ = ["QuantizedModule", "quantization_config", "read_config", "validate", "write_checkpoint"]

SPOOL = ".spool"
# The float model's weights, and its card, whose figures are not those of the quantized model.
WEIGHT_SUFFIXES = {
    *(".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".npz", ".gguf"),
    *(".h5", ".msgpack", ".ot", ".onnx", ".onnx_data", ".tflite", ".mlmodel"),
}
TEMPLATES = "additional_chat_templates"
FLOAT_DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}


def write_checkpoint(
    out: Path,
    source: Source,
    format: Format,
    weights: Iterable[tuple[str, MixedWeight]],
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Fill the empty directory `out`; see assemble.

    weights: (module name, tensors) of each quantized linear layer, lazily; on any device.
    """
    spool = Spool(out / SPOOL)
    modules: dict[str, QuantizedModule] = {}
    try:
        for name, weight in weights:
            modules[name] = QuantizedModule(weight.in_features, weight.out_features, weight.counts)
            _require(source, name)
            spool.append({name: weight}, {})
        assemble(out, source, format, modules, spool, shard_bytes)
    finally:
        spool.remove()


def assemble(
    out: Path,
    source: Source,
    format: Format,
    modules: Mapping[str, QuantizedModule],
    spool: Spool,
    shard_bytes: int = SHARD_BYTES,
    early: Early | None = None,
) -> None:
    """Make a checkpoint of `spool`, which holds the tensors of all `modules`, and use it up.

    Tensors of the source that no quantized layer replaces, tokenizer, chat template, generation_config
    and whatever else came with the model are copied as they are. config.json is written last: before it
    no loader sees a model. Called again after a process died, with the same arguments, it goes on: shards
    in `out` are whole and stay. early: has filled the first one, so that it only gets its name.
    Raises MixllmError when the disk is full or a layer is not there.
    """
    stored = unchanged(source, modules)
    written = read_headers(out.glob("model*.safetensors"))
    stored.update({n: _stored(None, header) for n, header in written.items() if n not in stored})
    # A process that died between writing a shard and emptying the spool leaves tensors in both.
    stored.update({n: _stored(header.file, header) for n, header in read_headers(spool.files()).items()})
    for name in modules:
        _require(source, name)
        if f"{name}.rows" not in stored:
            raise MixllmError(f"{out}: layer {name} is not there; quantize the model anew")
    _write_shards(out, source, stored, split(stored, shard_bytes), early)
    spool.remove()
    copy_companions(source.path, out)
    write_json(out / "config.json", _config(source, format, modules))


def _require(source: Source, name: str) -> None:
    if f"{name}.weight" not in source:
        raise MixllmError(f"{source.path}: holds no tensor {name}.weight, which was to be replaced")


def _stored(file: Path | None, header: Header) -> Stored:
    return Stored(file, header.dtype, header.shape, header.bytes)


def _write_shards(
    out: Path, source: Source, stored: Mapping[str, Stored], shards: StateDictSplit, early: Early | None
) -> None:
    waiting = Counter(place.file for place in stored.values())
    for shard, names in shards.filename_to_tensors.items():
        there = (out / shard).exists() or (early and early.finish(out / shard, {n: stored[n] for n in names}))
        if not there:
            save(out / shard, dict(_read(source, stored, names)))
        for file, taken in Counter(stored[name].file for name in names).items():
            waiting[file] -= taken
            if file and not waiting[file]:
                file.unlink()
    if shards.is_sharded:
        index = {"metadata": shards.metadata, "weight_map": shards.tensor_to_filename}
        write_json(out / INDEX, index)


def _read(source: Source, stored: Mapping[str, Stored], names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
    """The tensors, mapped from their files rather than read into memory."""
    by_file: dict[Path, list[str]] = {}
    for name in names:
        if file := stored[name].file:
            by_file.setdefault(file, []).append(name)
        else:
            yield name, source.tensor(name).contiguous()
    for file, waiting in by_file.items():
        with safe_open(file, framework="pt") as tensors:
            for name in waiting:
                yield name, tensors.get_tensor(name)


def _config(source: Source, format: Format, modules: Mapping[str, QuantizedModule]) -> dict[str, Any]:
    config = read_json(source.path / "config.json")
    if "dtype" not in config and "torch_dtype" not in config:
        # Without it, loaders take the dtype of the first float tensor they find: here, a scale's.
        dtype, _ = source.header(f"{next(iter(modules))}.weight")
        config["dtype"] = FLOAT_DTYPES.get(dtype, "float32")
    return {**config, "quantization_config": quantization_config(format, modules)}


def copy_companions(source: Path, out: Path) -> None:
    """Copy what came with a model (tokenizer, chat template, licence ...), but no weights, config or card."""
    for file in sorted((*source.glob("*"), *source.glob(f"{TEMPLATES}/*"))):
        skipped = (
            not file.is_file()
            or file.name.startswith(".")
            or file.suffix in WEIGHT_SUFFIXES
            or file.name.endswith(".index.json")
            or file.name in ("config.json", "README.md")
        )
        if not skipped:
            copy = out / file.relative_to(source)
            copy.parent.mkdir(exist_ok=True)
            write_atomically(copy, partial(_copy, file))


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)
