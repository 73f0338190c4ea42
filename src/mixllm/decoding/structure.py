"""A decoder's modules as the kernels take them, and whether they are still what they were."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from mixllm.kernels.cpu import CpuLinear
from mixllm.kernels.cpu.decoder import Decoder, DecoderBlock, Linear, RmsNorm
from mixllm.nn import MixLinear

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
HEAD_NORMS = ("q_norm", "k_norm")
MLP = ("gate_proj", "up_proj", "down_proj")
NORMS = ("input_layernorm", "post_attention_layernorm")


def looks_like_llama(decoder: Any) -> bool:
    """By what its modules are called and by its config."""
    config: Any = getattr(decoder, "config", None)
    return (
        _names(decoder) == {"embed_tokens", "layers", "norm", "rotary_emb"}
        and getattr(config, "hidden_act", None) == "silu"
        and len(decoder.layers) == config.num_hidden_layers
        and set(getattr(config, "layer_types", None) or ["full_attention"]) == {"full_attention"}
        and all(map(_is_llamas, decoder.layers))
        and _turns_halves(decoder.layers[0].self_attn)
    )


def _turns_halves(attention: nn.Module) -> bool:
    """Whether its code turns a head's first half against its second, not neighbours, as Helium's does."""
    turn = getattr(sys.modules[type(attention).__module__], "rotate_half", None)
    return turn is None or turn(torch.arange(4)).tolist() == [-2, -3, 0, 1]


def _is_llamas(layer: Any) -> bool:
    return (
        _names(layer) == {"self_attn", "mlp", *NORMS}
        and _names(layer.self_attn) in ({*ATTENTION}, {*ATTENTION, *HEAD_NORMS})
        and _names(layer.mlp) == {*MLP, "act_fn"}
        and all(isinstance(each, MixLinear) for each in _linears(layer))
    )


def _names(module: nn.Module) -> set[str]:
    return set(module._modules)


def _linears(layer: Any) -> list[Any]:
    return [
        *(getattr(layer.self_attn, name) for name in ATTENTION),
        *(getattr(layer.mlp, name) for name in MLP),
    ]


class Structure:
    """What a decoder that looks like Llama's consists of; decoder: it, for the kernels.

    Raises AttributeError or ValueError where it only looks so.
    """

    def __init__(self, model: Any, dtype: torch.dtype) -> None:
        attention = model.layers[0].self_attn
        self.weights: list[tuple[Tensor, int]] = []
        self.kernels: list[tuple[MixLinear, CpuLinear]] = []
        blocks = [self._block(layer, dtype) for layer in model.layers]
        self.decoder = Decoder(blocks, self._norm(model.norm, dtype), attention.head_dim)
        self.modules = [*model.layers.modules(), model.norm, model.rotary_emb]
        self.children = [(module._modules, dict(module._modules)) for module in model.modules()]

    def _block(self, layer: Any, dtype: torch.dtype) -> DecoderBlock:
        norms = [self._norm(getattr(layer, name), dtype) for name in NORMS]
        of_heads = [
            self._norm(getattr(layer.self_attn, name), dtype) if hasattr(layer.self_attn, name) else None
            for name in HEAD_NORMS
        ]
        linears = [self._linear(each) for each in _linears(layer)]
        return DecoderBlock(linears, [*norms, *of_heads], layer.self_attn.scaling)

    def _linear(self, layer: MixLinear) -> Linear:
        if not isinstance(layer.kernel, CpuLinear):
            raise ValueError("a layer runs on another backend")
        self.kernels.append((layer, layer.kernel))
        return Linear(layer.kernel, layer.bias)

    def _norm(self, norm: Any, dtype: torch.dtype) -> RmsNorm:
        if norm.weight.dtype != dtype:
            raise ValueError("a norm is of another dtype")
        self.weights.append((norm.weight, norm.weight.data_ptr()))
        eps = norm.variance_epsilon if hasattr(norm, "variance_epsilon") else norm.eps
        return RmsNorm(norm.weight, eps)

    def holds(self) -> bool:
        """Whether nothing was moved, loaded anew or replaced, and nobody watches or wraps a module."""
        return (
            all(layer._kernel is kernel for layer, kernel in self.kernels)
            and all(weight.data_ptr() == address for weight, address in self.weights)
            and all(now == then for now, then in self.children)
            and not is_watched(self.modules)
        )


def is_watched(modules: Iterable[nn.Module]) -> bool:
    """Whether a call of one of the modules does more than its class's forward."""
    return _has_any_global_hook() or any(
        module._forward_hooks or module._forward_pre_hooks or "forward" in module.__dict__
        for module in modules
    )
