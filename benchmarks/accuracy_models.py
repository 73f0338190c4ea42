"""Makes the models of the accuracy table, in memory."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from accuracy_variants import Variant
from torch import Tensor, nn

from mixllm.choosing import is_uniform, make_plan, sizes
from mixllm.config import Format, QuantConfig
from mixllm.format.rounded import Rounded
from mixllm.job import Job
from mixllm.kernels import Backend
from mixllm.kernels.activations import fake_quantize
from mixllm.nn import MixLinear
from mixllm.plan import Plan, Salience
from mixllm.rotation import rotate
from mixllm.writing import rounded_layers


def file_name(config: QuantConfig) -> str:
    """One for all configs that share a salience."""
    return f"{config.format.weight_scale}-{config.score}-{config.error}.safetensors"


def with_layers(
    reference: nn.Module, layers: dict[str, Rounded], format: Format, backend: Backend
) -> nn.Module:
    """A copy of the float model with quantized layers and int8 activations."""
    model = copy.deepcopy(reference)
    for name, layer in layers.items():
        mixed = MixLinear.from_rounded(layer, format, model.get_submodule(name).bias)
        mixed.backend = backend
        mixed.ahead = False  # all windows are of one length
        model.set_submodule(name, mixed)
    return model


class FloatWeightsA8(nn.Module):
    """A float linear layer that sees its inputs as int8 would leave them."""

    def __init__(self, linear: nn.Linear, format: Format) -> None:
        super().__init__()
        weight = rotate(linear.weight) if format.rotation == "hadamard" else linear.weight
        self.weight, self.bias, self.format = weight.detach(), linear.bias, format

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(fake_quantize(x, self.format), self.weight.to(x.dtype), self.bias)


class Builder:
    """Makes variants of one model; those that differ only in their activations share a rounding."""

    def __init__(self, job: Job, reference: nn.Module, backend: Backend, saliences: Path) -> None:
        """saliences: a directory that has every salience file_name() asks for."""
        self.job, self.reference, self.backend, self.saliences = job, reference, backend, saliences
        self.rounded: dict[str, dict[str, Rounded]] = {}

    @torch.no_grad()
    def build(self, variant: Variant) -> tuple[nn.Module, dict[str, Any]]:
        """The variant as a model, and what it takes (nothing to say of float weights)."""
        config = variant.config
        if config is None:
            assert variant.format is not None
            model = copy.deepcopy(self.reference)
            for name in self.job.shapes:
                model.set_submodule(name, FloatWeightsA8(model.get_submodule(name), variant.format))
            return model, {}
        if variant.equal is not None:
            config = config.model_copy(update={"bits": self.plan(variant.equal).payload_bits})
        plan = self.plan(config)
        layers = self.round(plan, config)
        if variant.activations == 8:
            model = with_layers(self.reference, layers, config.format, self.backend)
        else:
            model = copy.deepcopy(self.reference)
            for name, layer in layers.items():
                weight = layer.dequantize()
                rotated = config.format.rotation == "hadamard"
                model.get_submodule(name).weight.data = rotate(weight) if rotated else weight
        size = sizes(plan, config)
        return model, {
            "payload_bits": size.payload_bits,
            "bits": size.bits,
            "bytes": size.checkpoint_bytes,
            "rows": size.rows,
            "rows8_percent": size.total.percent,
            "rows8_percent_by_kind": {kind: share.percent for kind, share in size.by_kind.items()},
        }

    def plan(self, config: QuantConfig) -> Plan:
        scores = None if is_uniform(config) else Salience.load(self.saliences / file_name(config))
        return make_plan(self.job, config, scores)

    def round(self, plan: Plan, config: QuantConfig) -> dict[str, Rounded]:
        key = config.model_dump_json()
        if key not in self.rounded:
            self.rounded = {key: rounded_layers(self.job, plan, config)}
        return self.rounded[key]
