"""What a tensor is called in a model's files, where transformers' modules have another name for it."""

from __future__ import annotations

from typing import Protocol

from torch import nn

# (in the model, in the files): modules that transformers renamed after models were published.
RENAMED = (
    ("lm_head.", "embed_out."),  # GPT-NeoX
    (".mlp.", ".block_sparse_moe."),  # Mixtral and its kin
    (".mlp.router.", ".block_sparse_moe.gate."),  # Phi-3.5-MoE
    (".mlp.gate.moe_statics.", ".mlp.moe_statics."),  # ERNIE 4.5
    (".self_attn.sinks", ".self_attn.attention_sink_bias"),  # MiMo-V2
    (".mlp.gate.", ".mlp.router.gate."),  # Hunyuan 3
    (".mlp.e_score_correction_bias", ".mlp.expert_bias"),
    (".mlp.shared_experts.", ".mlp.shared_mlp."),
    (".mlp.shared_experts.", ".mlp.shared_expert."),  # Laguna
    (".mlp.gate.e_score_correction_bias", ".mlp.experts.e_score_correction_bias"),
    (".block_sparse_moe.experts.gate_up_proj", ".block_sparse_moe.input_linear.weight"),  # Granite's mixtures
    (".block_sparse_moe.experts.down_proj", ".block_sparse_moe.output_linear.weight"),
    (".block_sparse_moe.router.weight", ".block_sparse_moe.router.layer.weight"),
)
# A layer's fused experts, as transformers' modules hold them: two parameters [E, N, K].
FUSED = ("gate_up_proj", "down_proj")
# What files call each expert's own gate, up and down projections.
LEAVES = (("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2"))


class Names(Protocol):
    """A model's files, asked for a tensor's name: a Source, a dict, a set."""

    def __contains__(self, name: str, /) -> bool: ...


def in_files(name: str, held: Names) -> str:
    """The name in `held`, a model's files, of the tensor that the model calls `name`; else `name` itself."""
    older = (name.replace(new, old) for new, old in RENAMED)
    return next((candidate for candidate in (name, *older) if candidate in held), name)


def in_model(name: str, model: nn.Module) -> str:
    """The path in `model` of the module that its files call `name`; else `name` itself."""
    newer = (name.replace(old, new) for new, old in RENAMED)
    return next((candidate for candidate in (name, *newer) if _has(model, candidate)), name)


def _has(model: nn.Module, path: str) -> bool:
    try:
        model.get_submodule(path)
    except AttributeError:
        return False
    return True
