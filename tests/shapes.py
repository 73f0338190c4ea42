"""The one generator of shapes and layers: odd sizes by default."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor

from mixllm.config import WIDTHS, Format

FORMATS = [
    Format(weight_scale=scale, rotation=rotation, activation_group=group)
    for scale in ("group", "group_int", "row")
    for rotation in ("none", "hadamard")
    for group in (128, 256, 512, "token")
]
FORMAT_IDS = [f"{f.weight_scale}-{f.rotation}-{f.activation_group}" for f in FORMATS]

# Inputs: shorter than a group, one group, a short last group, several activation groups of each width.
in_features = st.sampled_from([1, 2, 31, 96, 127, 128, 129, 200, 328, 576, 700, 1100])
out_features = st.integers(1, 40)
tokens = st.integers(0, 9)
seeds = st.integers(0, 2**32 - 1)


def weight(n: int, k: int, seed: int) -> Tensor:
    """A weight [n, k] with rows of very different sizes, one of them all zero where there are three."""
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(n, k, generator=generator) * torch.rand(n, 1, generator=generator) * 0.1
    if n > 2:
        w[n // 2] = 0
    return w


def widths(n: int, share8: float, seed: int) -> Tensor:
    """uint8 [n] of 4 and 8, each row 8 with probability share8."""
    generator = torch.Generator().manual_seed(seed)
    eight = torch.rand(n, generator=generator) < share8
    return torch.where(eight, 8, 4).to(torch.uint8)


def any_widths(n: int, seed: int) -> Tensor:
    """uint8 [n] of all widths that a row may have."""
    drawn = torch.randint(len(WIDTHS), (n,), generator=torch.Generator().manual_seed(seed))
    return torch.tensor(WIDTHS, dtype=torch.uint8)[drawn]


def inputs(t: int, k: int, seed: int) -> Tensor:
    """Activations [t, k] in which a few inputs are far larger than the rest."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(t, k, generator=generator)
    x[:, k // 3] *= 30
    return x
