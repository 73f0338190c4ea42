"""Loading and measuring checkpoints of any kind against one float model, one at a time in memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from mixllm.blocks.skeleton import find_blocks, linears, skeleton
from mixllm.errors import MixllmError, one_line
from mixllm.evaluate import REFERENCE, Measurement, measure
from mixllm.files import at_home, read_json, require_link
from mixllm.format.config import read_config
from mixllm.loading import load
from mixllm.origin import note_origin
from mixllm.placement import device_name, load_float, pick_device, pick_dtype, versions
from mixllm.plan import report
from mixllm.progress import Progress
from mixllm.records import RECORDS
from mixllm.report.measured import Measured, Size, differences, rows
from mixllm.source import Source, is_gguf, open_source
from mixllm.source.hub import require_there
from mixllm.source.whole import require_all
from mixllm.texts import open_tokenizer, text_windows

Inspect = Callable[[str, nn.Module, Any], None]


@dataclass(frozen=True)
class Bench:
    """The float model, its tokenizer, and the windows int64 [n, window] on which all are measured."""

    name: str
    text: str
    source: Source
    tokenizer: Any
    reference: nn.Module
    ids: Tensor
    device: torch.device
    dtype: torch.dtype

    @classmethod
    def open(cls, model: str, text: str, window: int, count: int | None, device: str, dtype: str) -> Bench:
        """model: directory, hub name or GGUF file; count: windows, None for all. See mixllm.placement."""
        where, source = pick_device(device), open_source(model)
        kind = pick_dtype(dtype, where, source.config)
        tokenizer = open_tokenizer(source.path)
        ids = text_windows(text, tokenizer, source.config, window, count)
        return cls(model, text, source, tokenizer, load_float(source, where, kind), ids, where, kind)


def measure_all(
    bench: Bench, checkpoints: Sequence[str], progress: Progress, inspect: Inspect | None = None
) -> Measured:
    """Every checkpoint (mixllm's, or any that transformers loads) on the bench's windows.

    Only the float model and one checkpoint are in memory at a time. inspect: called with a name, model
    and tokenizer, the float model's first, while that model is there. MixllmError for what can't be loaded.
    """
    names = labels(checkpoints)
    for checkpoint in checkpoints:
        path = at_home(checkpoint)
        require_link(path)
        if not path.exists():
            require_there(checkpoint)
        if _is_mixllms(path):
            note_origin(path, bench.source, progress)
        elif not is_gguf(path):
            with _by_transformers(checkpoint):  # what is not there is said before others are measured
                AutoConfig.from_pretrained(_place(checkpoint), trust_remote_code=False)
    measured: dict[str, Measurement] = {}
    sizes = {REFERENCE: _float_size(bench.source)}
    layers = _linear_shapes(bench.source)
    if inspect is not None:
        inspect(REFERENCE, bench.reference, bench.tokenizer)
    for name, checkpoint in zip(names, checkpoints, strict=True):
        model = load_any(checkpoint, bench.device, bench.dtype)
        with progress.stage(f"measure {name}", len(bench.ids)) as bar:
            found = measure({name: model}, bench.reference, bench.ids, lambda done, total: bar.advance())
        measured |= found
        sizes[name] = _size(at_home(checkpoint), layers)
        if inspect is not None:
            inspect(name, model, bench.tokenizer)
        del model
    return Measured(
        model=bench.name,
        text=Path(bench.text).name,
        window=bench.ids.shape[1],
        windows=len(bench.ids),
        device=device_name(bench.device),
        date=time.strftime("%Y-%m-%d", time.gmtime()),
        versions=versions(),
        rows=rows(measured, sizes),
        differences=differences(measured),
    )


def labels(checkpoints: Sequence[str]) -> list[str]:
    """The last parts of the paths, as many as tell them apart. Raises MixllmError where two are one."""
    parts = [Path(checkpoint).parts for checkpoint in checkpoints]
    if len(set(map(tuple, parts))) < len(parts):
        raise MixllmError("checkpoints: one is given twice; leave one out")
    depth = 1
    while len(found := {"/".join(part[-depth:]) for part in parts}) < len(parts):
        depth += 1
    assert len(found) == len(parts)
    return ["/".join(part[-depth:]) for part in parts]


def load_any(checkpoint: str, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """A mixllm checkpoint, a GGUF file or a float model, or whatever else transformers loads.

    Raises MixllmError for what can't be loaded.
    """
    path = at_home(checkpoint)
    if is_gguf(path):
        return load_float(open_source(checkpoint), device, dtype)
    if _is_mixllms(path):
        return load(path, device, dtype)
    auto: Any = AutoModelForCausalLM
    with _by_transformers(checkpoint):
        model, info = auto.from_pretrained(
            _place(checkpoint), dtype=dtype, device_map={"": device}, output_loading_info=True,
            trust_remote_code=False,
        )  # fmt: skip
    if getattr(model.config, "quantization_config", None) is None:  # others make up their own tensors
        require_all(info["missing_keys"], checkpoint)
    evaluated: nn.Module = model.eval()
    return evaluated


def _place(checkpoint: str) -> str:
    """The directory, or the name on the hub, as transformers takes it."""
    path = at_home(checkpoint)
    return str(path) if path.exists() else checkpoint


@contextmanager
def _by_transformers(checkpoint: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # each quantizer of transformers has its own kinds of error
        raise MixllmError(f"{checkpoint}: transformers cannot load it ({one_line(error)})") from None


def _is_mixllms(path: Path) -> bool:
    """One whose config.json was replaced by another still has its records; load() says what is wrong."""
    return path.is_dir() and (_method(path) == "mixllm" or (path / RECORDS).is_dir())


def _method(path: Path) -> str | None:
    config = read_json(path / "config.json").get("quantization_config")
    return config.get("quant_method") if isinstance(config, dict) else None


def _linear_shapes(source: Source) -> dict[str, int]:
    """Weights of each linear layer that mixllm quantizes, by name."""
    whole = skeleton(source, torch.device("meta"), torch.float32)
    prefix, blocks = find_blocks(whole, source)
    return {
        name: layer.weight.numel()
        for i, block in enumerate(blocks)
        for name, layer in linears(block, f"{prefix}.{i}", source).items()
    }


def _float_size(source: Source) -> Size:
    stored = {name: source.bytes(name) for name in source.names}
    width = 8.0 * source.tensor(source.names[0]).dtype.itemsize
    return Size(payload_bits=width, bits=width, bytes=sum(stored.values()))


def _size(path: Path, layers: dict[str, int]) -> Size:
    """What lies on disk for the layers that mixllm quantizes, codes, scales and all but the bias."""
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else []
    stored: dict[str, int] = {}
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (not a dict)
                owner, _, part = name.rpartition(".")
                if part != "bias":
                    tensor = tensors.get_tensor(name)
                    stored[owner] = stored.get(owner, 0) + tensor.nbytes
    whole = layers.keys() <= stored.keys()
    bits = 8 * sum(stored[name] for name in layers) / sum(layers.values()) if whole else None
    payload = None
    if path.is_dir() and _method(path) == "mixllm":
        format, modules = read_config(path)
        found = report(modules, format)
        payload, bits = found.payload_bits, found.bits  # of its own layers, which may have other sizes
    return Size(
        payload_bits=payload, bits=bits, bytes=sum(file.stat().st_size for file in files) if files else None
    )
