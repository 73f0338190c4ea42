"""The block Hadamard rotation of activations and weights (docs/method.md).

y = x W' = (x H)(W H)' for an orthonormal symmetric H, so a layer's outputs keep their channels
while the inputs lose their outliers. Blocks are 128 wide; a shorter last block r = K mod 128 is cut
into equal blocks of the largest power of two that divides r.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mixllm import rotation_native
from mixllm.kernels.cpu.library import available

BLOCK = 128
# Rotated at once on a CPU: what stays in a core's cache.
ELEMENTS_AT_ONCE = 2**17


def rotate(x: Tensor) -> Tensor:
    """Multiply each block of the last dimension by an orthonormal Hadamard: [..., K] -> [..., K] float32.

    Butterflies run over strides 1, 2, 4 .. in float32 and one multiplication by fl32(block ** -0.5)
    ends them; every backend keeps this order, so that rotated activations agree bit for bit. Where no
    gradient is asked for, one kernel does it all on a GPU, if 128 divides K, and on a CPU.
    """
    rows = x.reshape(x.shape[:-1].numel(), x.shape[-1])
    if x.numel() and not x.requires_grad:
        if x.is_cuda and not x.shape[-1] % BLOCK:
            from mixllm.rotation_triton import launch

            return launch(rows).view(x.shape)
        if x.device.type == "cpu" and available() and not torch.compiler.is_compiling():
            return rotation_native.launch(rows).view(x.shape)
    return rotate_in_steps(rows).view(x.shape)


def rotate_in_steps(rows: Tensor) -> Tensor:
    """rotate, of [T, K], in torch's own steps: differentiable, and what kernels are held to."""
    whole = rows.shape[1] // BLOCK * BLOCK
    size = max(1, ELEMENTS_AT_ONCE // rows.shape[1] if rows.device.type == "cpu" else len(rows))
    return torch.cat([_rotated(part, whole) for part in rows.split(size)])


def _rotated(x: Tensor, whole: int) -> Tensor:
    """rotate(x [T, K]) of few rows; the first `whole` columns are in blocks of 128."""
    # A column is a piece of memory, so that every step adds long pieces.
    columns = x.T.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    _butterflies(columns[:whole], BLOCK)
    rest = len(columns) - whole
    _butterflies(columns[whole:], rest & -rest)
    return columns.T


def _butterflies(x: Tensor, block: int) -> None:
    """Multiply each block of rows of x [n block, T] by the Hadamard, in place."""
    stride = 1
    while stride < block:
        pairs = x.view(len(x) // (2 * stride), 2, stride, x.shape[1])
        a, b = pairs[:, 0], pairs[:, 1]
        difference = a - b
        a.add_(b)
        b.copy_(difference)
        stride *= 2
    if block:
        x.mul_(block**-0.5)
