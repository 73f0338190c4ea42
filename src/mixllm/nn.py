"""MixLinear: the module that stands where a quantized model's nn.Linear stood."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any, Self

import torch
from torch import Tensor, nn

from mixllm.config import Format
from mixllm.format.mixed import MixedWeight
from mixllm.format.pack import pack, shapes
from mixllm.format.rounded import Rounded
from mixllm.kernels import Backend, LinearKernel, prepare


class MixLinear(nn.Module):
    """A linear layer whose output channels have a width each, and int8 activations.

    Its buffers are the tensors of a checkpoint, by name (see mixllm.format.mixed). A change of dtype
    (model.half()) reaches the bias only: codes and scales are what was optimised. The layout that
    the device's backend runs is made at the first forward after loading or moving.

    rows: how many output channels each width has, such as {4: 90, 8: 10}. backend: see
    mixllm.kernels.prepare, as `ahead` is; both may be set until the first forward.
    """

    backend: Backend = "auto"
    ahead = True

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rows: dict[int, int],
        format: Format,
        bias: bool = False,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.format = format
        self._kernel: LinearKernel | None = None
        for name, (shape, dtypes) in shapes(format, rows, in_features).items():
            self.register_buffer(name, torch.empty(shape, dtype=dtypes[0], device=device))
        empty = torch.empty(out_features, dtype=dtype, device=device) if bias else None
        self.bias = None if empty is None else nn.Parameter(empty, requires_grad=False)

    @classmethod
    def from_weight(cls, weight: MixedWeight, format: Format, bias: Tensor | None = None) -> Self:
        """A layer that holds these tensors (not copies of them)."""
        layer = cls(weight.in_features, weight.out_features, weight.counts, format, device="meta")
        for name, tensor in weight.tensors().items():
            setattr(layer, name, tensor)
        layer.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        return layer

    @classmethod
    def from_rounded(cls, rounded: Rounded, format: Format, bias: Tensor | None = None) -> Self:
        return cls.from_weight(pack(rounded, format), format, bias)

    @property
    def stored(self) -> MixedWeight:
        """The tensors of the checkpoint, as they are (no copies)."""
        names = [f.name for f in fields(MixedWeight) if f.name != "in_features"]
        tensors: dict[str, Any] = {name: getattr(self, name, None) for name in names}
        return MixedWeight(self.in_features, **tensors)

    @property
    def kernel(self) -> LinearKernel:
        """Made at its first use after loading or moving; another object then.

        Where accelerate brings the buffers for one forward alone (a device_map with offload_buffers), it is
        made for each forward too: a kernel that was kept would keep on the device what was taken off it.
        """
        if self._kernel is not None:
            return self._kernel
        kernel = prepare(self.stored, self.format, self.backend, ahead=self.ahead)
        if not self._is_offloaded():
            self._kernel = kernel
        return kernel

    def _is_offloaded(self) -> bool:
        hook = getattr(self, "_hf_hook", None)  # accelerate's: one, or several in a row
        return any(getattr(part, "offload_buffers", False) for part in (hook, *getattr(hook, "hooks", ())))

    def forward(self, x: Tensor) -> Tensor:
        """x [..., K] float -> [..., N] in x's dtype."""
        return self.kernel(x, self.bias)

    def extra_repr(self) -> str:
        rows = ", ".join(f"{count} x {width} bit" for width, count in self.stored.counts.items())
        return f"in_features={self.in_features}, out_features={self.out_features}, rows={rows}"

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._kernel = None
        super()._load_from_state_dict(*args, **kwargs)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Let moves between devices reach the buffers, but never a change of their dtype."""

        def keep_dtype(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        for name, buffer in self._buffers.items():
            if buffer is not None:
                self._buffers[name] = keep_dtype(buffer)
        if self.bias is not None:
            self.bias = nn.Parameter(fn(self.bias.data), requires_grad=False)
        self._kernel = None
        return self
