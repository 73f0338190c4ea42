"""What tests need to know of a mixture's experts: where the original model keeps what files name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.models import write_tiny

UP_HALF = ("up_proj", "w3")
DOWN = ("down_proj", "w2")


def is_expert(name: str) -> bool:
    return ".experts." in name


def original(model: Any, name: str) -> tuple[torch.nn.Module, int]:
    """transformers' module of fused experts that holds the layer `name`, and the expert's number."""
    path, number = re.fullmatch(
        r"(.*\.experts)\.(\d+)\.\w+", name.replace("block_sparse_moe", "mlp")
    ).groups()
    return model.get_submodule(path), int(number)


def fused_part(model: Any, name: str, gradient: bool = False) -> Tensor:
    """The weight [N, K] of an expert's layer, or its gradient, as a part of the fused parameter."""
    experts, number = original(model, name)
    leaf = name.rpartition(".")[2]
    parameter = experts.down_proj if leaf in DOWN else experts.gate_up_proj
    both = (parameter.grad if gradient else parameter.detach())[number]
    if leaf in DOWN:
        return both
    return both.chunk(2)[leaf in UP_HALF]


def write_with_idle_expert(path: Path, architecture: str) -> Any:
    """A tiny mixture whose last expert no token reaches: its router row is the mean of the others' rows,
    so that it never has the largest logit, and one expert is taken a token."""
    write_tiny(path, architecture, num_experts_per_tok=1)
    tensors = load_file(path / "model.safetensors")
    for name, weight in tensors.items():
        if name.endswith((".mlp.gate.weight", ".block_sparse_moe.gate.weight")):
            weight[-1] = weight[:-1].mean(dim=0)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
