"""A model without its weights: its modules, its decoder blocks, and how tensors reach them."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from mixllm.errors import MixllmError
from mixllm.source import Source

WEIGHT_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def skeleton(source: Source, device: torch.device, dtype: torch.dtype) -> Any:
    """The transformers model, in eval mode, parameters on meta and buffers on `device`."""
    auto: Any = AutoModelForCausalLM
    # Buffers that no file holds (rotary frequencies, embedding scales) are made by the model's own code.
    with init_empty_weights(include_buffers=False):
        model = auto.from_config(copy.deepcopy(source.config), dtype=dtype, trust_remote_code=False)
    for module in model.modules():
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, buffer.to(device))
    # The parameters that accelerate moves to meta come back as new objects, so tied ones no longer share.
    return model.eval().requires_grad_(False)


def find_blocks(model: nn.Module, source: Source) -> tuple[str, nn.ModuleList]:
    """The decoder blocks: (name, list), the outermost ModuleList with nn.Linear layers in it.

    Of several, the one as long as the config says, then the one with most weights (a vision tower
    has blocks too). Raises MixllmError when there is none.
    """
    found: dict[str, nn.ModuleList] = {}
    for name, module in model.named_modules():
        inside = any(name.startswith(outer + ".") for outer in found)
        if isinstance(module, nn.ModuleList) and not inside and _has_linear(module):
            found[name] = module
    if not found:
        raise MixllmError(
            f"{source.path}: no list of decoder blocks with nn.Linear layers in a {source.config.model_type} model"
        )
    depth = getattr(source.config.get_text_config(), "num_hidden_layers", None)

    def likely(name: str) -> tuple[bool, int]:
        return len(found[name]) == depth, sum(p.numel() for p in found[name].parameters())

    best = max(found, key=likely)
    return best, found[best]


def linears(block: nn.Module, prefix: str) -> dict[str, nn.Linear]:
    """Full name -> nn.Linear of a block, without the routers and gates that stand beside a list of experts."""
    return {
        f"{prefix}.{name}": module
        for name, module in block.named_modules()
        if type(module) is nn.Linear and not hasattr(block.get_submodule(name.rpartition(".")[0]), "experts")
    }


def load_module(
    module: nn.Module, prefix: str, source: Source, device: torch.device, dtype: torch.dtype, skip: str = ""
) -> list[tuple[nn.Module, str, nn.Parameter]]:
    """Give a module its parameters and stored buffers from the source, cast to dtype on device.

    prefix: the module's full name; skip: full name of a submodule to leave alone. Parameters that
    the source lacks stay on meta (tied ones; see missing). Returns what stood there before, for
    unload. Raises MixllmError for a tensor of another shape or of a type that is no float weight.
    """
    before = []
    for owner, leaf, name in _slots(module, prefix, skip):
        old = getattr(owner, leaf)
        if name in source:
            tensor = _read(source, name, old.shape).to(device).to(dtype if old.is_floating_point() else old.dtype)
            if isinstance(old, nn.Parameter):
                before.append((owner, leaf, old))
                # A copy: in the source's own memory a change would come back at the next read.
                tensor = nn.Parameter(tensor.clone() if device.type == "cpu" else tensor, requires_grad=False)
            setattr(owner, leaf, tensor)
    return before


def tie(model: Any, source: Source) -> None:
    """Share the embeddings with the head where the config ties them and only one of them is stored."""
    ends = [end for end in (model.get_input_embeddings(), model.get_output_embeddings()) if end is not None]
    real = [end.weight for end in ends if not end.weight.is_meta]
    if real and source.config.get_text_config().tie_word_embeddings:
        for end in ends:
            if end.weight.is_meta:
                end.weight = real[0]


def unload(before: list[tuple[nn.Module, str, nn.Parameter]]) -> None:
    """Put back what load_module replaced."""
    for owner, leaf, old in before:
        setattr(owner, leaf, old)


def missing(module: nn.Module, prefix: str, skip: str = "") -> str | None:
    """The full name of the first parameter that is still on meta."""
    for owner, leaf, name in _slots(module, prefix, skip):
        if getattr(owner, leaf).is_meta:
            return name
    return None


def _has_linear(module: nn.Module) -> bool:
    return any(type(part) is nn.Linear for part in module.modules())


def _slots(module: nn.Module, prefix: str, skip: str) -> Iterator[tuple[nn.Module, str, str]]:
    """(owner, attribute, full name) of every parameter and stored buffer, shared ones each time."""
    stored = module.state_dict()
    for name, owner in module.named_modules():
        for leaf in (*owner._parameters, *owner._buffers):
            own = f"{name}.{leaf}" if name else leaf
            full = f"{prefix}.{own}" if prefix else own
            if own in stored and not (skip and full.startswith(skip + ".")):
                yield owner, leaf, full


def _read(source: Source, name: str, shape: torch.Size) -> Tensor:
    tensor = source.tensor(name)
    if tensor.dtype not in WEIGHT_DTYPES and tensor.dtype not in (torch.bool, torch.int64):
        raise MixllmError(f"{source.path}: tensor {name} is {tensor.dtype}; only float weights can be quantized")
    if tensor.shape != shape:
        raise MixllmError(
            f"{source.path}: tensor {name} is {list(tensor.shape)}, but config.json needs {list(shape)}"
        )
    return tensor
