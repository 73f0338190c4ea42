"""Where to compute and in what, from what a user typed, the float model there, and how results state it."""

from __future__ import annotations

import platform
import re
from importlib.metadata import version
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from mixllm.errors import MixllmError
from mixllm.source import Source
from mixllm.source.config import model_class
from mixllm.source.whole import require_all
from mixllm.torchrun import number_here, world
from mixllm.version import __version__

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def pick_device(name: str) -> torch.device:
    """auto (a GPU if there is one, else the CPU), cpu, cuda, cuda:1; MixllmError if it is not there.

    Of several GPUs, auto and cuda are the first, or, of processes that torchrun starts, each one's own.
    """
    own = f"cuda:{number_here()}" if world() > 1 else "cuda"
    if name == "auto":
        name = own if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise MixllmError(f"device: {name} is unknown; give auto, cpu, cuda or cuda:1")
    device = torch.device(own if name == "cuda" else name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise MixllmError(
            f"device: {name}: there are {torch.cuda.device_count()} CUDA devices; give auto or cpu"
        )
    return device


def pick_dtype(name: str, device: torch.device, config: Any) -> torch.dtype:
    """auto: float32 on a CPU, the dtype of the model's transformers config elsewhere; or a name of DTYPES.

    Raises MixllmError for any other name.
    """
    if name in DTYPES:
        return DTYPES[name]
    if name != "auto":
        raise MixllmError(f"dtype: {name} is unknown; give auto, {', '.join(DTYPES)}")
    own = getattr(config, "dtype", None)
    return own if device.type != "cpu" and isinstance(own, torch.dtype) else torch.float32


def load_float(source: Source, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    """The float model itself, whole, in eval mode: what a quantized one is measured against.

    Raises MixllmError where its files lack a tensor, which transformers would fill with random numbers.
    """
    if source.fp8_block:
        # transformers' own reading of such files takes blocks at the edges for smaller ones.
        tensors = {name: source.tensor(name) for name in source.names}
        loaded = model_class(source.config).from_pretrained(
            None, config=source.config, state_dict=tensors, dtype=dtype, output_loading_info=True
        )
    else:
        auto: Any = AutoModelForCausalLM
        loaded = auto.from_pretrained(
            source.path, dtype=dtype, output_loading_info=True, trust_remote_code=False
        )
    model, info = loaded
    require_all(info["missing_keys"], str(source.path))
    moved: PreTrainedModel = model.to(device)
    return moved


def device_name(device: torch.device) -> str:
    """The GPU's own name, or the processor's architecture."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU ({platform.machine()})"


def versions() -> dict[str, str]:
    """What a result depends on, by package."""
    return {"mixllm": __version__, **{name: version(name) for name in ("torch", "transformers")}}
