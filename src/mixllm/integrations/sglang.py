"""SGLang: its server takes a mixed checkpoint once mixllm is installed beside it, with no flag and no patch.

SGLang calls register() in each of its processes, through the entry point group sglang.srt.plugins. Its linear
layers and their methods have the form of the vLLM that they came from, so the work is that of vLLM's plugin.
"""

from __future__ import annotations

import warnings
from typing import Any, Self

import torch
from sglang import __version__ as version
from sglang.srt.distributed.utils import get_group_rank_size
from sglang.srt.layers.linear import LinearBase
from sglang.srt.layers.quantization import QUANTIZATION_METHODS
from sglang.srt.layers.quantization.base_config import (
    LinearMethodBase,
    QuantizationConfig,
    QuantizeMethodBase,
)
from sglang.srt.layers.quantization.unquant import UnquantizedLinearMethod
from sglang.srt.runtime_context import get_server_args

from mixllm.format.config import QUANT_METHOD, parse_config
from mixllm.integrations.served.config import ServedConfig, check_directory
from mixllm.integrations.served.layers import parts_of, refuse_other
from mixllm.integrations.served.linear import ServedLinear

# The version that this was written against; see docs/serving.md for how much of it was run.
WRITTEN_FOR = "0.5.23"
# What most of its models join and do not say.
JOINED = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}
# What SGLang adds to the quantization_config of config.json.
ADDED = ("packed_modules_mapping", "hf_config")


def register() -> None:
    """Make "mixllm" one of SGLang's quantization methods."""
    if version != WRITTEN_FOR:
        warnings.warn(
            f"mixllm was tried with SGLang {WRITTEN_FOR}, not with {version}", RuntimeWarning, stacklevel=2
        )
    QUANTIZATION_METHODS[QUANT_METHOD] = MixllmConfig


class MixllmLinearMethod(ServedLinear, LinearMethodBase):
    def is_dummy(self) -> bool:
        return bool(get_server_args().load_format == "dummy")

    def rank(self, layer: torch.nn.Module) -> int:
        rank, _ = get_group_rank_size(layer.tp_group)
        return int(rank)


class MixllmConfig(ServedConfig, QuantizationConfig):
    """A checkpoint's quantization_config. Experts are refused: their layers were not written for."""

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Raises MixllmError for a broken checkpoint, where it is a directory: before memory is taken."""
        own = cls(
            *parse_config({key: value for key, value in config.items() if key not in ADDED}, "config.json")
        )
        own.packed_modules_mapping = {**JOINED, **config.get("packed_modules_mapping", {})}
        check_directory(getattr(config.get("hf_config"), "name_or_path", ""))
        return own

    def get_scaled_act_names(self) -> list[str]:
        return []

    def get_quant_method(self, layer: torch.nn.Module, prefix: str) -> QuantizeMethodBase | None:
        if not isinstance(layer, LinearBase):
            refuse_other(layer, prefix, self.modules, "SGLang")
            return None
        quantized = parts_of(prefix, self.modules, self.packed_modules_mapping, "SGLang")
        return MixllmLinearMethod(self.format, quantized, prefix) if quantized else UnquantizedLinearMethod()
