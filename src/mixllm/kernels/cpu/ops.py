"""The layer as torch sees it: one operator that quantizes its input and multiplies it by a mixed weight."""

from __future__ import annotations

from ctypes import byref

import torch
from torch import Tensor

from mixllm.errors import MixllmError
from mixllm.kernels.cpu.library import Call, Weight, load

TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
BY_ROW, GROUP_HALF, GROUP_FLOAT = 0, 1, 2


def describe(tensors: list[Tensor], numbers: list[int]) -> Weight:
    """What the library is told of a weight; the tensors must outlive it."""
    codes4, codes8, zeros4, _, scales4, scales8, _, _ = tensors
    inputs, outputs, activation_width, rotate = numbers[:4]

    def kind(scales: Tensor) -> int:
        if scales4.dim() == 1:
            return BY_ROW
        return GROUP_HALF if scales.dtype == torch.float16 else GROUP_FLOAT

    return Weight(
        *(tensor.data_ptr() for tensor in tensors),
        inputs, outputs, len(codes4), len(codes8), zeros4.shape[1], activation_width,
        kind(scales4), kind(scales8), rotate,
    )  # fmt: skip


def run(weight: Weight, x: Tensor, bias: Tensor | None, isa: int) -> Tensor:
    """x [T, K] -> y [T, N] in x's dtype. Raises MixllmError for a wrong dtype, shape or device."""
    check(weight.inputs, weight.outputs, x, bias)
    if x.dtype not in TYPES:
        return run(weight, x.float(), bias, isa).to(x.dtype)
    if x.shape[1] > 1 and x.stride(1) != 1:
        x = x.contiguous()
    if bias is not None:
        bias = bias.detach().float().contiguous()
    y = x.new_empty(x.shape[0], weight.outputs)
    call = Call(
        x.data_ptr(), y.data_ptr(), None if bias is None else bias.data_ptr(),
        x.shape[0], x.stride(0), TYPES[x.dtype], isa,
    )  # fmt: skip
    if load().mixllm_linear(byref(weight), byref(call)):
        raise MemoryError("mixed linear: no memory for the quantized activations")
    return y


def check(inputs: int, outputs: int, x: Tensor, bias: Tensor | None) -> None:
    if x.device.type != "cpu":
        raise MixllmError(f"mixed linear: input is on {x.device}, weight on the CPU; move one")
    if not x.is_floating_point():
        raise MixllmError(f"mixed linear: input is {x.dtype}; give a float dtype")
    if x.shape[1] != inputs:
        raise MixllmError(f"mixed linear: input has {x.shape[1]} features, weight {inputs}")
    if bias is not None and (bias.shape != (outputs,) or bias.device.type != "cpu"):
        raise MixllmError(f"mixed linear: bias must be [{outputs}] on the CPU")


@torch.library.custom_op("mixllm::cpu_linear", mutates_args=(), device_types="cpu")
def cpu_linear(x: Tensor, bias: Tensor | None, tensors: list[Tensor], numbers: list[int], isa: int) -> Tensor:
    """`run` for programs that torch traces; tensors and numbers are KernelWeight's."""
    return run(describe(tensors, numbers), x, bias, isa)


@cpu_linear.register_fake
def _like(x: Tensor, bias: Tensor | None, tensors: list[Tensor], numbers: list[int], isa: int) -> Tensor:
    return x.new_empty(x.shape[0], numbers[1])
