"""Random stored layers that use the whole range of every field, for the CUDA backend's tests."""

from __future__ import annotations

import torch
from torch import Tensor

from mixllm.config import GROUP_SIZE, Format
from mixllm.format.mixed import MixedWeight
from mixllm.format.pack import pack_nibbles


def random_weight(
    n4: int,
    n8: int,
    k: int,
    format: Format,
    seed: int,
    *,
    half: bool = True,
    unit_scales: bool = False,
    device: str = "cpu",
) -> MixedWeight:
    """A layer with n4 + n8 channels; rows of a width in ascending order of channels, as stored layers have.

    half: group scales are float16, else float32. unit_scales: float scales are 1 and outputs integers.
    """
    generator = torch.Generator(device=device).manual_seed(seed)
    groups = format.groups(k)

    def draw(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=generator, device=device, dtype=torch.int16)

    def spread(values: Tensor) -> Tensor:
        return torch.repeat_interleave(values.expand(n4, groups), GROUP_SIZE, dim=1)[:, :k]

    zeros = draw(0, 16, n4, 1 if format.weight_scale == "row" else groups)
    multipliers = draw(1, 17, n4, groups) if format.weight_scale == "group_int" else draw(1, 2, n4, groups)
    z, m = spread(zeros), spread(multipliers)
    # m (q - z) is an int8 in every stored layer.
    least = torch.maximum(z - 128 // m, torch.zeros_like(z))
    most = torch.minimum(z + 127 // m, torch.full_like(z, 15))
    codes = torch.minimum(torch.maximum(draw(0, 16, n4, k), least), most)

    per_row = (groups,) if format.weight_scale == "group" else ()
    dtype = torch.float16 if half and per_row else torch.float32

    def scales(n: int) -> Tensor:
        if unit_scales:
            return torch.ones(n, *per_row, device=device, dtype=dtype)
        return (torch.rand(n, *per_row, generator=generator, device=device) * 0.01 + 0.001).to(dtype)

    order = torch.randperm(n4 + n8, generator=generator, device=device).int()
    return MixedWeight(
        in_features=k,
        rows=torch.cat((order[:n4].sort().values, order[n4:].sort().values)),
        codes4=pack_nibbles(codes.to(torch.uint8)),
        zeros4=pack_nibbles(zeros.to(torch.uint8)),
        scales4=scales(n4),
        codes8=draw(-127, 128, n8, k).to(torch.int8),
        scales8=scales(n8),
        multipliers4=pack_nibbles((multipliers - 1).to(torch.uint8))
        if format.weight_scale == "group_int"
        else None,
    )
