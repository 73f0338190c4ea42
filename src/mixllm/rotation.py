"""The block Hadamard rotation of activations and weights (docs/method.md).

y = x W' = (x H)(W H)' for an orthonormal symmetric H, so a layer's outputs keep their channels
while the inputs lose their outliers. Blocks are 128 wide; a shorter last block r = K mod 128 is cut
into equal blocks of the largest power of two that divides r.
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 128


def rotate(x: Tensor) -> Tensor:
    """Multiply each block of the last dimension by an orthonormal Hadamard: [..., K] -> [..., K] float32.

    Butterflies run over strides 1, 2, 4 .. in float32 and one multiplication by fl32(block ** -0.5)
    ends them; every backend keeps this order, so that rotated activations agree bit for bit. On a GPU one
    kernel does it all where 128 divides K and no gradient is asked for.
    """
    whole = x.shape[-1] // BLOCK * BLOCK
    rest = x.shape[-1] - whole
    if x.is_cuda and x.numel() and not rest and not x.requires_grad:
        from mixllm.rotation_triton import launch

        return launch(x.reshape(-1, whole)).view(x.shape)
    x = x.float()
    parts = [_hadamard(x[..., :whole], BLOCK)] if whole else []
    if rest:
        parts.append(_hadamard(x[..., whole:], rest & -rest))
    return torch.cat(parts, dim=-1) if parts else x


def _hadamard(x: Tensor, block: int) -> Tensor:
    shape = x.shape
    stride = 1
    while stride < block:
        pairs = x.reshape(*shape[:-1], shape[-1] // (2 * stride), 2, stride)
        a, b = pairs[..., 0, :], pairs[..., 1, :]
        x = torch.stack((a + b, a - b), dim=-2)
        stride *= 2
    scale: float = block**-0.5
    return x.reshape(shape) * scale
