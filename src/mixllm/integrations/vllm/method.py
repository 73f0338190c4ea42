"""The linear method of vLLM."""

from __future__ import annotations

import torch
from vllm.config import get_current_vllm_config
from vllm.model_executor.layers.linear import LinearMethodBase

from mixllm.integrations.served.linear import ServedLinear


class MixllmLinearMethod(ServedLinear, LinearMethodBase):
    def is_dummy(self) -> bool:
        return bool(get_current_vllm_config().load_config.load_format == "dummy")

    def rank(self, layer: torch.nn.Module) -> int:
        return getattr(layer, "tp_rank", 0)
