"""A model without its weights, and where its decoder blocks and linear layers are."""

from __future__ import annotations

import copy
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import nn
from transformers import AutoModelForCausalLM

from mixllm.errors import MixllmError, one_line
from mixllm.experts import split_experts
from mixllm.names import Names, in_files
from mixllm.source import Source

# Subclasses of nn.Linear that compute its product: Falcon's adds the bias in a step of its own.
PLAIN = ("FalconLinear",)


def skeleton(source: Source, device: torch.device, dtype: torch.dtype) -> Any:
    """The transformers model in eval mode, parameters on meta as dtype, buffers on device, no gradients.

    Experts are linear layers of their own, as in mixllm.experts. Raises MixllmError for a config by which its
    code makes none, such as one with a word of a newer transformers.
    """
    auto: Any = AutoModelForCausalLM
    # Buffers that no file holds (rotary frequencies, embedding scales) are made by the model's own code.
    try:
        with init_empty_weights(include_buffers=False):
            model = auto.from_config(copy.deepcopy(source.config), dtype=dtype, trust_remote_code=False)
    except Exception as error:  # a model's own code has a kind of error for each word that it doesn't know
        said = f"{type(error).__name__}: {one_line(error)}"
        raise MixllmError(f"{source.path}: transformers can't make a model by its config ({said})") from None
    split_experts(model, source)
    for module in model.modules():
        if type(module).__name__ in PLAIN:
            module.__class__ = nn.Linear
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, buffer.to(device))
    return model.eval().requires_grad_(False)


def find_blocks(model: nn.Module, source: Source) -> tuple[str, nn.ModuleList]:
    """The decoder blocks: (name, list), the outermost ModuleList with nn.Linear layers in it.

    Of several, one as long as the config says, then the one with the most weights (a vision tower
    has blocks too). Raises MixllmError when there is none.
    """
    found: dict[str, nn.ModuleList] = {}
    for name, module in model.named_modules():
        inside = any(name.startswith(outer + ".") for outer in found)
        if isinstance(module, nn.ModuleList) and not inside and _has_linear(module):
            found[name] = module
    if not found:
        kind = source.config.model_type
        raise MixllmError(f"{source.path}: no decoder blocks with nn.Linear layers in a {kind} model")
    depth = getattr(source.config.get_text_config(), "num_hidden_layers", None)

    def likely(name: str) -> tuple[bool, int]:
        return len(found[name]) == depth, sum(p.numel() for p in found[name].parameters())

    best = max(found, key=likely)
    return best, found[best]


def linears(block: nn.Module, prefix: str, held: Names = ()) -> dict[str, nn.Linear]:
    """Full name -> nn.Linear of a block, but for those that choose: routers and gates, which stand beside the
    experts, and a sparse attention's indexer, which no gradient reaches.

    held: the names of the model's files, which go before the modules' own.
    """
    return {
        in_files(f"{prefix}.{name}.weight", held).removesuffix(".weight"): module
        for name, module in block.named_modules()
        if type(module) is nn.Linear and not _chooses(block, name)
    }


def _chooses(block: nn.Module, name: str) -> bool:
    """Whether a linear layer stands beside experts, or is in a gate that does, or in an indexer."""
    if "indexer" in name.split("."):
        return True
    parent, _, _ = name.rpartition(".")
    above, _, own = parent.rpartition(".")
    beside = hasattr(block.get_submodule(parent), "experts")
    return beside or (own == "gate" and hasattr(block.get_submodule(above), "experts"))


def _has_linear(module: nn.Module) -> bool:
    return any(type(part) is nn.Linear for part in module.modules())
