"""The method of vLLM's layers of experts: how they load mixed weights and apply them.

On an NVIDIA GPU all experts are one launch a layer (mixllm.kernels.cuda.grouped), elsewhere one runs
after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from vllm.config import get_current_vllm_config
from vllm.model_executor.layers.fused_moe import RoutedExperts
from vllm.model_executor.layers.fused_moe.activation import MoEActivation, apply_moe_activation
from vllm.model_executor.layers.fused_moe.fused_moe_method_base import FusedMoEMethodBase
from vllm.model_executor.utils import set_weight_attrs

from mixllm.config import GROUP_SIZE, Format
from mixllm.errors import MixllmError
from mixllm.format.config import QuantizedModule
from mixllm.format.mixed import MixedWeight
from mixllm.format.pack import shapes
from mixllm.format.parts import join, select_channels, select_inputs
from mixllm.format.validate import GUARD
from mixllm.integrations.served.pieces import (
    NOT_AS_TOLD,
    all_rows,
    check_new,
    has_shapes,
    on_host,
    placeholder_weight,
    sound,
    wide_share,
)
from mixllm.integrations.vllm.experts_op import EXPERTS, ExpertKernels, OneByOne
from mixllm.integrations.vllm.loading import is_dummy
from mixllm.kernels import prepare
from mixllm.kernels.cuda.grouped import GroupedExperts


def experts_method(
    layer: torch.nn.Module, prefix: str, format: Format, modules: Mapping[str, QuantizedModule]
) -> MixllmExpertsMethod | None:
    """The method of a layer of experts, or None where the layer is none or its experts are not quantized."""
    if not isinstance(layer, RoutedExperts) or not any(name.startswith(f"{prefix}.") for name in modules):
        return None
    return MixllmExpertsMethod(layer, prefix, format, modules)


class MixllmExpertsMethod(FusedMoEMethodBase):
    """Loads each expert's three layers and applies them as one: gate and up joined, then down."""

    def __init__(
        self, layer: RoutedExperts, prefix: str, format: Format, modules: Mapping[str, QuantizedModule]
    ) -> None:
        super().__init__(layer.moe_config)
        self.prefix, self.format, self.modules = prefix, format, modules
        gate, up, down = layer.ckpt_gate_proj_name, layer.ckpt_up_proj_name, layer.ckpt_down_proj_name
        self.leaves = {"w1": gate, "w3": up, "w2": down}
        # By expert and vLLM's name for the projection: the tensors, as they lie in the mapped file.
        self.pieces: dict[tuple[int, str], dict[str, Tensor]] = {}
        self.assembled = False

    def create_weights(
        self,
        layer: RoutedExperts,
        num_experts: int,
        hidden_size: int,
        intermediate_size_per_partition: int,
        params_dtype: torch.dtype,
        **extra_weight_attrs: Any,
    ) -> None:
        """Raises MixllmError for what this path cannot do, with what works instead."""
        config = get_current_vllm_config()
        self._refuse(layer, config.model_config.enforce_eager, intermediate_size_per_partition)
        self.dummy = is_dummy(self.prefix)
        self.count, self.hidden, self.part = num_experts, hidden_size, intermediate_size_per_partition
        rows = all_rows(self.modules.values())
        dtypes = {name: possible[-1] for name, (_, possible) in shapes(self.format, rows, 1).items()}
        for name, dtype in {**dtypes, GUARD: torch.uint8}.items():
            for stem in ("w13", "w2"):
                empty = Parameter(torch.empty(0, dtype=dtype), requires_grad=False)
                set_weight_attrs(empty, {"weight_loader": self._loader(name)})
                layer.register_parameter(f"{stem}_{name}", empty)

    def process_weights_after_loading(self, layer: RoutedExperts) -> None:
        """Raises MixllmError for a checkpoint that lacks tensors or whose tensors are not sound."""
        device = layer.get_parameter(f"w2_{GUARD}").device
        experts = []
        for number in range(self.count):
            gate, up, down = (self._weight(number, shard, layer) for shard in self.leaves)
            experts.append((join([gate, up]), down))
        self.pieces, self.assembled = {}, True
        gate_by = partial(_gated, layer.activation)
        kernels: ExpertKernels
        if device.type == "cuda" and torch.version.hip is None:
            kernels = GroupedExperts(experts, self.format, gate_by, device)
        else:
            prepared = [
                (prepare(up.to(device), self.format), prepare(down.to(device), self.format))
                for up, down in experts
            ]
            kernels = OneByOne(prepared, gate_by)
        layer.register_buffer("kernels", EXPERTS.keep(kernels), persistent=False)

    def get_fused_moe_quant_config(self, layer: RoutedExperts) -> None:
        """None: no kernel of vLLM's own is used."""

    def apply(
        self, layer: RoutedExperts, x: Tensor, topk_weights: Tensor, topk_ids: Tensor, *_: Any, **__: Any
    ) -> Tensor:
        """x [T, H], each token's experts and their weights [T, top k] -> [T, H], without shared experts."""
        y: Tensor = torch.ops.mixllm.served_experts(x, topk_weights, topk_ids, layer.kernels)
        return y

    def _loader(self, name: str) -> Callable[..., bool | None]:
        """The weight_loader of the parameters of that name, as vLLM's layers of experts call it."""

        def load(
            param: Parameter,
            loaded_weight: Tensor,
            weight_name: str,
            shard_id: str,
            expert_id: int,
            return_success: bool = False,
        ) -> bool | None:
            check_new(self.prefix, self.assembled)
            self.pieces.setdefault((expert_id, shard_id), {})[name] = on_host(loaded_weight)
            return True if return_success else None

        return load

    def _weight(self, number: int, shard: str, layer: RoutedExperts) -> MixedWeight:
        """This rank's part of one projection of one expert."""
        down = shard == "w2"
        if self.dummy:
            n, k = (self.hidden, self.part) if down else (self.part, self.hidden)
            share = wide_share(self.modules.values())
            device = layer.get_parameter(f"w2_{GUARD}").device
            return placeholder_weight(self.format, n, k, share, device)
        weight = self._whole(f"{self.prefix}.{number}.{self.leaves[shard]}", number, shard)
        first = layer.moe_config.tp_rank * self.part
        if down:
            return select_inputs(weight, self.format, first, first + self.part)
        return select_channels(weight, torch.arange(first, first + self.part))

    def _whole(self, name: str, number: int, shard: str) -> MixedWeight:
        """The projection as it is stored."""
        module, tensors = self.modules.get(name), self.pieces.get((number, shard), {})
        if module is None:
            raise MixllmError(f"{name}: is not quantized, but other experts of its layer are")
        if not has_shapes(tensors, module, self.format):
            raise MixllmError(f"{name}: {NOT_AS_TOLD}")
        return sound(tensors, module, self.format, name)

    def _refuse(self, layer: RoutedExperts, eager: bool, part: int) -> None:
        ranks = layer.moe_config.tp_size
        if layer.use_ep:
            reason = "its experts can't be spread over ranks; leave out --enable-expert-parallel"
        elif layer.apply_router_weight_on_input:
            reason = "its router weighs inputs, which no path here does; use transformers"
        elif torch.version.hip is not None and not eager:
            reason = "quantized experts don't run in graphs on AMD GPUs; give --enforce-eager"
        elif ranks > 1 and part % GROUP_SIZE:
            cut = f"{ranks} ranks would cut its experts' {ranks * part} inputs inside a group of {GROUP_SIZE}"
            reason = f"{cut}; --tensor-parallel-size 1 works"
        else:
            return
        raise MixllmError(f"{self.prefix}: {reason}")


def _gated(activation: MoEActivation, both: Tensor) -> Tensor:
    """[T, 2 I] -> [T, I]"""
    inner = both.new_empty(len(both), both.shape[1] // 2)
    apply_moe_activation(activation, inner, both)
    return inner
