"""The linear method of vLLM."""

from __future__ import annotations

import torch
from vllm.model_executor.layers.linear import LinearMethodBase

from mixllm.integrations.served.linear import ServedLinear
from mixllm.integrations.vllm.loading import is_dummy


class MixllmLinearMethod(ServedLinear, LinearMethodBase):
    def is_dummy(self) -> bool:
        return is_dummy(self.prefix)

    def rank(self, layer: torch.nn.Module) -> int:
        return getattr(layer, "tp_rank", 0)
