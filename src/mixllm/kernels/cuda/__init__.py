"""The CUDA backend: mixed 4- and 8-bit rows in one launch, from sm_80 on."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from mixllm.config import Format
from mixllm.errors import MixllmError
from mixllm.format.mixed import MixedWeight
from mixllm.kernels.cuda import hopper, ops, quantizing, skinny, strips
from mixllm.kernels.cuda.blocks import blocks
from mixllm.kernels.cuda.excess import excess
from mixllm.kernels.cuda.launch import device
from mixllm.kernels.cuda.layout import KernelWeight, to_kernel_order
from mixllm.kernels.cuda.opaque import number, opaque_linear
from mixllm.kernels.cuda.planned import Planned
from mixllm.kernels.cuda.tiles import Scales, choose, table


class CudaLinear:
    """A weight in the kernels' order on one GPU; x [..., K] -> y [..., N] in x's dtype."""

    def __init__(self, weight: KernelWeight, format: Format) -> None:
        self.weight, self.format = weight, format
        self.scales = Scales.of(format, weight.scales4.shape[2] > 48)
        self.group = 0 if format.activation_group == "token" else format.activation_group
        self.tensors = [
            weight.codes8, weight.codes4, weight.scales8, weight.scales4, weight.rows, weight.row_scales,
            blocks(weight.rows, len(weight.codes8)),
        ]  # fmt: skip
        if self.scales.unsigned:
            self.tensors[-1] = torch.cat((self.tensors[-1], excess(weight).view(torch.int32)))
        settle(self.tensors)
        rotate = format.rotation == "hadamard"
        self.planned = Planned(self.tensors, self.scales, rotate, self.group, weight.out_features)
        self.number = number(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy is another layer."""
        vars(self).update(state, number=number(self))
        settle(self.tensors)

    def __call__(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Raises MixllmError for a wrong dtype, shape or device."""
        weight = self.weight
        channels = weight.out_features
        if torch.compiler.is_compiling():
            return opaque_linear(x, self.number, bias, channels)
        flat = x if x.dim() == 2 else x.reshape(x.shape[:-1].numel(), x.shape[-1])
        if bias is not None:
            bias = bias.to(x.dtype)
        if (y := self.planned.again(flat, bias)) is None:
            ops.check_input(x, weight.in_features, bias, channels, weight.rows.device)
            if (y := self.planned.first(flat, bias)) is None:
                y = self._operators(flat, bias)
        return y if x.dim() == 2 else y.view(*x.shape[:-1], channels)

    def _operators(self, flat: Tensor, bias: Tensor | None) -> Tensor:
        """x [T, K] -> y [T, N], by what is worked out anew."""
        weight = self.weight
        channels = weight.out_features
        rotate = self.format.rotation == "hadamard"
        index, groups = flat.device.index, weight.codes4.shape[1]
        few = skinny.takes(index, self.scales, len(flat), channels, groups)
        if few and strips.quantizes(self.scales, len(flat), channels, groups):
            fresh = (flat, self.tensors, bias, channels, self.scales.weight, rotate)
            return cast(Tensor, strips.linear_few(*fresh))
        sizes = (self.scales, self.group, len(flat), channels, groups)
        quantized = ops.quantize(flat, rotate, self.group, *order(index, *sizes))
        rest = (self.tensors, bias, channels, flat.dtype, self.scales.weight, self.group)
        if few:
            y = skinny.gemm_few(*quantized, *rest)
        elif hopper.takes(index, self.scales, len(flat)):
            y = hopper.gemm_many(*quantized, *rest)
        else:
            y = ops.gemm(*quantized, *rest)
        return cast(Tensor, y)


def settle(weight: list[Tensor]) -> None:
    """Wait until a weight is there: its kernels ask for it before the kernel before them is done."""
    if weight[0].is_cuda:
        torch.cuda.current_stream(weight[0].device).synchronize()


def order(
    index: int, scales: Scales, group: int, tokens: int, channels: int, groups: int
) -> tuple[bool, bool]:
    """How a product of so many tokens wants its activations: in the order of hopper and skinny, and unsigned
    with the sums of groups behind them (`tiled` and `summed` of ops.quantize).

    group: inputs that share a scale, 0: all of a token's; groups: of 128 inputs."""
    if skinny.takes(index, scales, tokens, channels, groups):
        return strips.choose(scales, group, tokens, channels, groups) is None, False
    many = hopper.takes(index, scales, tokens)
    return many, many and scales.unsigned


def prepare(
    weight: MixedWeight, format: Format, device_: torch.device | str, *, ahead: bool = True
) -> CudaLinear:
    """Lay a stored weight out on a GPU and, if `ahead`, compile what it will need; runs once, at load time.

    Raises MixllmError for a GPU older than sm_80 or where NVRTC is missing.
    """
    target = torch.device(device_)
    index = torch.cuda.current_device() if target.index is None else target.index
    target = torch.device("cuda", index)
    if not torch.cuda.is_available():
        raise MixllmError(
            "the CUDA backend needs a GPU and torch built for CUDA; choose the reference backend"
        )
    moved = {name: tensor.to(target) for name, tensor in weight.tensors().items()}
    linear = CudaLinear(to_kernel_order(MixedWeight(weight.in_features, **moved), format), format)
    if ahead:
        warm_up(linear, index)
    return linear


def warm_up(linear: CudaLinear, index: int) -> None:
    """Compile and load every kernel that forward may launch."""
    scales, group, groups = linear.scales, linear.group, linear.weight.codes4.shape[1]
    channels = linear.weight.out_features
    rotate, tail = linear.format.rotation == "hadamard", linear.weight.in_features % 128 > 0
    dtypes = (torch.float16, torch.bfloat16)
    least = skinny.most_tokens(scales) + 1
    if hopper.takes(index, scales, least):
        few = range(1, least)
        tiles = {
            strips.choose(scales, group, t, channels, groups) or skinny.choose(scales, t, channels, groups)
            for t in few
        }
        for tile in tiles:
            if tile:
                run = skinny.product(index, scales, tile)
                if isinstance(tile, strips.StripTile):
                    run.blocks_alone(tile.peers, tile.threads)
        for found in {strips.quantizes(scales, t, channels, groups) for t in few}:
            if found:
                for dtype in dtypes:
                    strips.product(index, scales, *found, dtype, rotate, tail)
        for many in hopper.TILES[scales.key]:
            hopper.product(index, scales, many)
        for dtype in dtypes:
            quantizing.quantizer_of_many(index, dtype, rotate, tail, group, scales.unsigned)
    else:
        for most, _ in table(scales.key):
            ops.product(index, scales, choose(scales, most, device(index).shared_limit))
    padded = groups * 128
    tokens = range(1, max(quantizing.MOST_SHARED, least) + 2)
    clusters = device(index).capability >= (9, 0)
    launches = {
        (vectors, parts, sum(tiled))
        for n in tokens
        for tiled in [order(index, scales, group, n, channels, groups)]
        for vectors, _, _, parts in [quantizing.launch_shape(n, padded, clusters, group, tiled[0])]
    }
    for vectors, parts, tiled in launches:
        for dtype in dtypes:
            quantizing.quantizer(index, dtype, vectors, rotate, tail, group, tiled=tiled, parts=parts)
