"""How an engine's linear layers load a mixed weight and multiply by it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from mixllm.config import GROUP_SIZE, Format
from mixllm.errors import MixllmError
from mixllm.format.config import QuantizedModule
from mixllm.format.mixed import MixedWeight
from mixllm.format.pack import shapes
from mixllm.format.validate import GUARD
from mixllm.integrations.served.op import KERNELS
from mixllm.integrations.served.pieces import Pieces, all_rows, placeholder_weight, wide_share
from mixllm.kernels import prepare


class ServedLinear:
    """Serves any of the engine's linear layers, fused, merged or split over ranks: all of a linear method
    but the engine's own base class and two questions to the engine.

    A rank's numbers of 4- and 8-bit rows depend on the checkpoint's `rows`, so nothing is allocated
    before the tensors come: the parameters are empty and only collect (see Pieces).
    """

    def __init__(self, format: Format, modules: Mapping[str, QuantizedModule], prefix: str) -> None:
        self.format, self.modules, self.prefix = format, modules, prefix

    def is_dummy(self) -> bool:
        """Whether the engine draws weights instead of loading them."""
        raise NotImplementedError

    def rank(self, layer: torch.nn.Module) -> int:
        """Which of the ranks that split the layer's inputs this one is."""
        raise NotImplementedError

    def create_weights(
        self,
        layer: torch.nn.Module,
        input_size_per_partition: int,
        output_partition_sizes: list[int],
        input_size: int,
        output_size: int,
        params_dtype: torch.dtype,
        **extra_weight_attrs: Any,
    ) -> None:
        """Raises MixllmError where tensor parallelism would cut the inputs inside a group of 128."""
        self._check_cut(input_size, input_size_per_partition)
        self.pieces = Pieces(self.format, self.modules, self.prefix)
        # The widest of a tensor's possible dtypes: vLLM warns where a parameter's is narrower than a file's.
        rows = all_rows(self.modules.values())
        dtypes = {name: possible[-1] for name, (_, possible) in shapes(self.format, rows, 1).items()}
        for name, dtype in {**dtypes, GUARD: torch.uint8}.items():
            empty = Parameter(torch.empty(0, dtype=dtype), requires_grad=False)
            vars(empty)["weight_loader"] = self.pieces.loader(name)
            layer.register_parameter(name, empty)
        self.channels, self.inputs = sum(output_partition_sizes), input_size_per_partition
        self.parts = input_size // input_size_per_partition
        self.layer_loader = extra_weight_attrs["weight_loader"]
        self.dummy = self.is_dummy()

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        """Raises MixllmError for a checkpoint that lacks tensors or whose tensors are not sound."""
        device = layer.get_parameter(GUARD).device
        kernel = prepare(self._weight(layer, device).to(device), self.format)
        layer.register_buffer("kernel", KERNELS.keep(kernel), persistent=False)

    def apply(self, layer: torch.nn.Module, x: Tensor, bias: Tensor | None = None) -> Tensor:
        y: Tensor = torch.ops.mixllm.served_linear(x, layer.kernel, bias, self.channels)
        return y

    def _weight(self, layer: torch.nn.Module, device: torch.device) -> MixedWeight:
        if self.dummy:
            share = wide_share(self.modules.values())
            return placeholder_weight(self.format, self.channels, self.inputs, share, device)
        rank = self.rank(layer) if self.parts > 1 else 0
        return self.pieces.assemble(self.layer_loader, self.channels, rank * self.inputs, self.inputs)

    def _check_cut(self, inputs: int, part: int) -> None:
        if part == inputs or part % GROUP_SIZE == 0:
            return
        ranks = inputs // part
        works = max(size for size in range(1, ranks) if size == 1 or inputs % (size * GROUP_SIZE) == 0)
        raise MixllmError(
            f"{self.prefix}: {ranks} ranks would cut its {inputs} inputs inside a group of {GROUP_SIZE}; "
            f"--tensor-parallel-size {works} works"
        )
