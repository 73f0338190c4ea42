"""What the CUDA kernels read, in the order that it had before."""

from __future__ import annotations

import torch
from torch import Tensor

from mixllm.config import Format
from mixllm.format.mixed import MixedWeight
from mixllm.format.pack import pack_nibbles
from mixllm.kernels.cuda import layout


def from_kernel_order(weight: layout.KernelWeight, format: Format) -> MixedWeight:
    """The stored layer again; group scales come back in the wider type of the two widths."""
    k, n4, n8 = weight.in_features, weight.n4, weight.n8
    border = len(weight.codes8) * layout.TILE
    zeros = layout.by_row(weight.scales4[..., -layout.TILE :], torch.uint8)[:n4]
    multipliers = None
    if format.weight_scale == "group":
        scale_type = torch.float16 if weight.scales4.shape[2] == 3 * layout.TILE else torch.float32
        scales4 = layout.by_row(weight.scales4[..., : -layout.TILE], scale_type)[:n4]
        scales8 = layout.by_row(weight.scales8, scale_type)[:n8]
    else:
        scales8, scales4 = weight.row_scales[:n8], weight.row_scales[border : border + n4]
        if format.weight_scale == "group_int":
            multipliers = pack_nibbles(zeros & 15)
        zeros = zeros >> 4
    codes8 = layout.in_rows8(weight.codes8)
    return MixedWeight(
        in_features=k,
        rows=torch.cat((weight.rows[border : border + n4], weight.rows[:n8])),
        codes4=pack_nibbles(layout.in_rows4(weight.codes4)[:n4, :k]),
        zeros4=pack_nibbles(zeros[:, :1] if format.weight_scale == "row" else zeros),
        scales4=scales4,
        codes8=codes8[:n8, :k],
        scales8=scales8,
        multipliers4=multipliers,
    )


def untiled(codes: Tensor) -> Tensor:
    """[G, T, 128] as the quantizer writes it for this path, of codes -> [T, 128 G] in the order of inputs."""
    groups, tokens, _ = codes.shape
    pieces = codes.reshape(groups, tokens, 8, 16)
    token = torch.arange(tokens, device=codes.device)[:, None] % 8
    source = torch.arange(8, device=codes.device) ^ token
    ordered = pieces.gather(2, source[None, :, :, None].expand(pieces.shape))
    words = ordered.reshape(groups, tokens, 2, 4, 4, 4).transpose(3, 4)
    return words.reshape(groups, tokens, 128).transpose(0, 1).reshape(tokens, groups * 128)
