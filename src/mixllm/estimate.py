"""What a run will need, told before it starts: counted operations over a measured rate, and sizes.

Only the model's config is read (a GGUF file is converted, as the run itself would). The time is good to
a factor of two or so: operations are counted, what is bound by memory is in one measured factor.
"""

from __future__ import annotations

import shutil
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download

from mixllm.blocks.decoder import LOGITS_AT_ONCE
from mixllm.blocks.skeleton import find_blocks, linears, skeleton
from mixllm.config import GROUP_SIZE, WIDTHS, QuantConfig
from mixllm.experts import Experts
from mixllm.format.checkpoint import SHARD_BYTES
from mixllm.format.config import EXPERT, QuantizedModule
from mixllm.pipeline import TOKENS_AT_ONCE
from mixllm.placement import pick_device, pick_dtype
from mixllm.plan import report
from mixllm.rounding import needs_hessian
from mixllm.source import open_source
from mixllm.source.config import read_config
from mixllm.tuning.tune import WINDOWS

# A run's time over that of its counted operations at full rate: SmolLM2-135M, 2 CPU cores.
SLACK = 2.5
# Grids that a sweep tries: a group's own and its neighbours.
GRIDS = 5
# Python, torch and transformers before any tensor.
BASE_BYTES = 600 * 10**6


@dataclass(frozen=True)
class Estimate:
    """What a run needs: seconds on `device`, memory_bytes and disk_bytes at their peaks, and of the latter
    checkpoint_bytes for good; free_bytes are what the disk has."""

    device: str
    seconds: float
    memory_bytes: int
    checkpoint_bytes: int
    disk_bytes: int
    free_bytes: int


def estimate(
    model: str, out: Path, config: QuantConfig, *, device: str, dtype: str, measured: bool
) -> Estimate:
    """For quantize() with the same arguments. measured: the run measures salience itself."""
    where, size = pick_device(device), _size(model, out)
    kind = pick_dtype(dtype, where, size.config)
    counts = {
        name: QuantizedModule(k, n, {4: n, 8: 0}) for block in size.blocks for name, (n, k) in block.items()
    }
    # Payload bits are the budget; scales, zeros and row numbers hardly depend on the choice.
    found = report(counts, config.format, size.other_bytes)
    bits = config.bits or WIDTHS[0] + (config.channels or 0) / 100 * (WIDTHS[-1] - WIDTHS[0])
    checkpoint = found.checkpoint_bytes + round((bits - WIDTHS[0]) / 8 * found.weights)
    errors = 2 * len(WIDTHS) * found.weights if measured and config.error == "gptq" else 0
    return Estimate(
        device=str(where),
        seconds=SLACK * _operations(size, config, measured) / _rate(where, kind),
        memory_bytes=_memory(size, config, where, kind, measured),
        checkpoint_bytes=checkpoint,
        disk_bytes=max(errors, checkpoint + min(SHARD_BYTES, checkpoint)),
        free_bytes=shutil.disk_usage(_existing(out)).free,
    )


@dataclass(frozen=True)
class _About:
    """A model of which only the config is known; its files hold whatever a model of this kind may hold."""

    path: Path
    config: Any

    def __contains__(self, name: str) -> bool:
        return True


@dataclass(frozen=True)
class _Size:
    """A model's config, the (out, in) shapes of its linear layers by block, its hidden size, the weights of
    its head, the bytes of what is not quantized, and the share of tokens that an expert sees."""

    config: Any
    blocks: list[dict[str, tuple[int, int]]]
    hidden: int
    head: int
    other_bytes: int
    routed: float

    @property
    def weights(self) -> float:
        """Weights that a token meets."""
        return sum(n * k * self._share(name) for block in self.blocks for name, (n, k) in block.items())

    def hessians(self, met: bool) -> float:
        """K^2 of every Hessian: layers of one parent module with one K nearly always share their input.

        met: only of those that a token meets.
        """
        inputs = {(n.rpartition(".")[0], k) for block in self.blocks for n, (_, k) in block.items()}
        return sum(k * k * (self._share(f"{parent}.") if met else 1) for parent, k in inputs)

    def _share(self, name: str) -> float:
        return self.routed if EXPERT.search(name) else 1


def _size(model: str, out: Path) -> _Size:
    path = _config_directory(model, out)
    about: Any = _About(path, read_config(path))
    whole = skeleton(about, torch.device("meta"), torch.float32)
    prefix, blocks = find_blocks(whole, about)
    layers = [linears(block, f"{prefix}.{i}") for i, block in enumerate(blocks)]
    weights = sum(layer.weight.numel() for block in layers for layer in block.values())
    head = whole.get_output_embeddings().weight.numel()
    mixtures = (len(module) for module in whole.modules() if isinstance(module, Experts))
    text = about.config.get_text_config()
    tied = head if text.tie_word_embeddings else 0
    stored = getattr(about.config, "dtype", None) or torch.float32
    return _Size(
        config=about.config,
        blocks=[{n: (layer.out_features, layer.in_features) for n, layer in b.items()} for b in layers],
        hidden=text.hidden_size,
        head=head,
        other_bytes=(sum(p.numel() for p in whole.parameters()) - weights - tied) * stored.itemsize,
        routed=getattr(text, "num_experts_per_tok", 1) / next(mixtures, 1),
    )


def _config_directory(model: str, out: Path) -> Path:
    path = Path(model).expanduser()
    if not path.exists() and path.suffix != ".gguf":
        # Of a model on the hub only the config; if that fails, the full download says best why.
        with suppress(OSError, ValueError):
            return Path(hf_hub_download(model, "config.json")).parent
    return open_source(model, out.parent).path


def _operations(size: _Size, config: QuantConfig, measured: bool) -> float:
    """Multiplications and additions: per token for the walks and tuning, per weight and input for GPTQ."""
    tokens = config.samples * config.window
    forward, hessian = 2 * size.weights, 2 * size.hessians(met=True)
    gptq = sum(n * k * k for block in size.blocks for n, k in block.values())
    total = 0.0
    if measured:
        # Forward; again with its backward; the output error of every width; the head and its backward.
        total += tokens * (forward * (3 + len(WIDTHS)) + 6 * size.head)
        total += tokens * hessian + len(WIDTHS) * gptq if config.error == "gptq" else 0
    if needs_hessian(config):
        total += tokens * (2 * forward + hessian) + gptq
    if config.rounding == "gptq":
        total += config.sweeps * sum(
            n * k * (4 * k + 2 * GRIDS * GROUP_SIZE) for block in size.blocks for n, k in block.values()
        )
        # Forward, again and backward by inputs; the heads of both models, again and backward.
        total += config.tune * tokens * (3 * forward + 10 * size.head)
    return total


def _memory(
    size: _Size, config: QuantConfig, device: torch.device, dtype: torch.dtype, measured: bool
) -> int:
    """All boundary states while salience is measured; one block with its errors and Hessians; what a batch
    leaves for the backward pass, of which three float32 copies of all inputs and outputs is a fair count."""
    block = max(sum(n * k for n, k in shapes.values()) for shapes in size.blocks)
    boundaries = len(size.blocks) + 1 if measured else 1
    states = boundaries * config.samples * config.window * size.hidden * dtype.itemsize
    hessians = round(3 * 4 * size.hessians(met=False) / len(size.blocks))
    working = block * (dtype.itemsize + 4 * (1 + 2 * len(WIDTHS))) + hessians
    features = max(sum(n + k for n, k in shapes.values()) for shapes in size.blocks)
    batch = 3 * 4 * features * min(TOKENS_AT_ONCE[device.type], config.samples * config.window)
    tuned = config.rounding == "gptq" and config.tune > 0
    logits = 3 * 4 * LOGITS_AT_ONCE if measured or tuned else 0
    needed = states + working + batch
    if tuned:
        # All rounded weights, twice a byte; the boundary states of a step, and the float model's last ones.
        step = (len(size.blocks) + 1) * min(WINDOWS, config.samples) * config.window
        kept = (step + config.samples * config.window) * size.hidden * dtype.itemsize
        weights = sum(n * k for shapes in size.blocks for n, k in shapes.values())
        needed = max(needed, 2 * weights + kept + batch)
    return BASE_BYTES + needed + logits + 2 * size.head * dtype.itemsize


def _rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a matrix product that is too large for caches, measured for a moment."""
    n = 4096 if device.type == "cuda" else 1024
    a = torch.randn(n, n, device=device, dtype=dtype)
    (a @ a).sum().item()
    began, products = time.perf_counter(), 0
    while (spent := time.perf_counter() - began) < 0.3:
        (a @ a)[0, 0].item()
        products += 1
    return 2 * n**3 * products / spent


def _existing(path: Path) -> Path:
    return next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())
