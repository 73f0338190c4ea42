"""Tiny quantized models that decode both ways."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from mixllm.config import Format, QuantConfig
from mixllm.decoding import install
from mixllm.decoding.way import OUTPUT_CACHE, ShortWay
from mixllm.nn import MixLinear
from mixllm.rounding import round_rows
from tests import shapes
from tests.models import VOCAB, tiny_model


def quantized(architecture: str = "llama", format: Format | None = None, **options: Any) -> Any:
    """A tiny model of which all layers in blocks are mixed; its own code runs."""
    model, format = tiny_model(architecture, **options), format or Format()
    config = QuantConfig(format=format, rounding="rtn", clip=False)
    for module in model.model.layers.modules():
        for name, linear in module.named_children():
            if isinstance(linear, nn.Linear):
                widths = shapes.widths(linear.out_features, 0.2, 3)
                rounded = round_rows(linear.weight.detach().float(), widths, config, None)
                setattr(module, name, MixLinear.from_rounded(rounded, format, linear.bias))
    return model


def short(model: Any) -> tuple[Any, ShortWay]:
    """A copy that takes the short way, and that."""
    model = copy.deepcopy(model)
    install(model)
    way = vars(model.model)["forward"].__self__
    assert isinstance(way, ShortWay)
    return model, way


def ids(length: int, seed: int = 0) -> Tensor:
    """Token numbers [1, length]."""
    return torch.randint(3, VOCAB, (1, length), generator=torch.Generator().manual_seed(seed))


def prefilled(model: Any, length: int = 21) -> DynamicCache:
    cache = DynamicCache(config=model.config)
    step(model, ids(length), cache)
    return cache


@torch.no_grad()
def step(model: Any, tokens: Tensor, cache: DynamicCache, **options: Any) -> Tensor:
    """Log-probabilities [1, T, V] in float32."""
    logits: Tensor = model(tokens, **{OUTPUT_CACHE: cache}, **options).logits
    return logits.float().log_softmax(dim=-1)
