"""What vLLM asks of a quantization method: its limits, and which layer is quantized how."""

from __future__ import annotations

from typing import Any, Self

import torch
from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod
from vllm.model_executor.layers.quantization import register_quantization_config
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig, QuantizeMethodBase

from mixllm.errors import MixllmError
from mixllm.format.config import QUANT_METHOD, parse_config
from mixllm.integrations.served.config import ServedConfig, check_directory
from mixllm.integrations.served.layers import parts_of, refuse_other
from mixllm.integrations.vllm.method import MixllmLinearMethod

# Their load_weights in vLLM reorders the rows of a fused attention weight on the way in, by its shape.
REORDERED = {"BloomForCausalLM", "FalconForCausalLM", "GPTNeoXForCausalLM", "RWForCausalLM"}

# What vLLM puts before the names of a model that drafts for another (speculative decoding).
DRAFT = "draft_model."


@register_quantization_config(QUANT_METHOD)
class MixllmConfig(ServedConfig, QuantizationConfig):
    """A checkpoint's quantization_config, under the names that vLLM's model gives to the modules."""

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        return cls(*parse_config(config, "config.json"))

    def maybe_update_config(
        self, model_name: str, hf_config: Any = None, revision: str | None = None
    ) -> None:
        """Raise MixllmError for a broken checkpoint before any process starts or any memory is taken."""
        for architecture in getattr(hf_config, "architectures", None) or ():
            if architecture in REORDERED:
                raise MixllmError(
                    f"{model_name}: {architecture} can't be served by vLLM from this format; use transformers"
                )
        check_directory(model_name)

    def apply_vllm_mapper(self, hf_to_vllm_mapper: Any) -> None:
        self.modules = hf_to_vllm_mapper.apply_dict(self.modules)

    def get_quant_method(self, layer: torch.nn.Module, prefix: str) -> QuantizeMethodBase | None:
        prefix = prefix.removeprefix(DRAFT)
        if not isinstance(layer, LinearBase):
            method = self._experts_method(layer, prefix)
            if method is None:
                refuse_other(layer, prefix, self.modules, "vLLM")
            return method
        quantized = parts_of(prefix, self.modules, self.packed_modules_mapping, "vLLM")
        if not quantized:
            return UnquantizedLinearMethod()
        return MixllmLinearMethod(self.format, quantized, prefix)

    def _experts_method(self, layer: torch.nn.Module, prefix: str) -> QuantizeMethodBase | None:
        try:
            from mixllm.integrations.vllm.experts import experts_method
        except ImportError:  # an older vLLM, whose experts are built otherwise: they are refused
            return None
        return experts_method(layer, prefix, self.format, self.modules)
