"""Which calls of a decoder are a usual step: some new tokens of one sequence behind those in its cache."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from mixllm.kernels.cpu.ops import TYPES

# Beyond, the model's own code loses little to its many small operations.
MOST_TOKENS = 16
# transformers 5.24 gave the cache another name.
CACHE_NAMES = ("cache", "past_key_values")
POSITIONS = ("position_ids", "cache_position")
KNOWN = {"input_ids", "inputs_embeds", "attention_mask", "use_cache", "return_dict", *CACHE_NAMES, *POSITIONS}


@dataclass(frozen=True)
class Step:
    """x: embedded tokens [1, T, hidden]; positions [1, T]; past: tokens in the cache; layers: the cache's."""

    x: Tensor
    positions: Tensor
    cache: DynamicCache
    past: int

    @property
    def layers(self) -> list[Any]:
        return self.cache.layers

    def tensors(self) -> list[Tensor]:
        """Keys of layer 0, values of layer 0, ..., each [1, kv_heads, length, head]."""
        return [tensor for layer in self.layers for tensor in (layer.keys, layer.values)]


def usual_step(decoder: Any, call: Mapping[str, Any]) -> Step | None:
    """The step that a call of the decoder with these arguments is; None where anything is unusual."""
    if decoder.training or torch.is_grad_enabled() or torch.compiler.is_compiling():
        return None
    if torch.is_autocast_enabled("cpu") or _asks_for_more(decoder.config, call):
        return None
    given = [call[name] for name in ("input_ids", "inputs_embeds") if call.get(name) is not None]
    caches = [call[name] for name in CACHE_NAMES if call.get(name) is not None]
    if len(given) != 1 or len(caches) != 1 or type(caches[0]) is not DynamicCache:
        return None
    (tokens,), (cache,) = given, caches
    if tokens.device.type != "cpu" or tokens.shape[0] != 1 or not 1 <= tokens.shape[1] <= MOST_TOKENS:
        return None
    past = cache.get_seq_length()
    end = past + tokens.shape[1]
    window = getattr(decoder.config, "sliding_window", None)
    if not past or (window is not None and end > window) or not _sees_all(call.get("attention_mask"), end):
        return None
    order = list(range(past, end))
    if not all(_are(call.get(name), order) for name in POSITIONS):
        return None
    x = decoder.embed_tokens(tokens) if call.get("inputs_embeds") is None else tokens
    if x.dtype not in TYPES or len(cache.layers) != len(decoder.layers):
        return None
    if not all(_is_plain(layer, x.dtype, past) for layer in cache.layers):
        return None
    return Step(x, torch.tensor([order]), cache, past)


def _asks_for_more(config: Any, call: Mapping[str, Any]) -> bool:
    """Outputs besides the last hidden states, or anything that isn't known here."""
    return (
        call.get("use_cache") is False
        or call.get("return_dict") is False
        or any(call[name] is not None and call[name] is not False for name in call.keys() - KNOWN)
        or bool(getattr(config, "output_hidden_states", False))
        or bool(getattr(config, "output_attentions", False))
        or getattr(config, "return_dict", True) is False
    )


def _sees_all(mask: Any, end: int) -> bool:
    return mask is None or (isinstance(mask, Tensor) and mask.shape == (1, end) and bool(mask.all()))


def _are(positions: Any, order: list[int]) -> bool:
    return positions is None or (isinstance(positions, Tensor) and positions.flatten().tolist() == order)


def _is_plain(layer: Any, dtype: torch.dtype, past: int) -> bool:
    tensors: list[Any] = [layer.keys, layer.values] if type(layer) is DynamicLayer else [None]
    return all(
        isinstance(each, Tensor)
        and (each.dtype, each.device.type, each.shape[0], each.shape[2]) == (dtype, "cpu", 1, past)
        for each in tensors
    )
