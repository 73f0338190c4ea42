"""The order of tiled activations against wgmma's registers, and the choice of tiles; no GPU is needed."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mixllm.config import PROFILES
from mixllm.format.pack import unpack_nibbles
from mixllm.kernels.cuda import hopper, layout
from mixllm.kernels.cuda.tiles import Scales
from tests.kernels.cuda.inverses import untiled
from tests.kernels.cuda.weights import random_weight


def tiled(codes: Tensor) -> Tensor:
    """[T, 128 G] -> [G, T, 128], each thread of the quantizer with eight inputs (csrc/quantize.cu, place)."""
    tokens, padded = codes.shape
    out = torch.zeros(padded // 128, tokens, 128, dtype=codes.dtype)
    for token in range(tokens):
        for at in range(0, padded, 8):
            c, j, panel = at // 16 % 4, at // 8 % 2, at // 64 % 2
            for r in range(2):
                piece = (panel * 4 + j * 2 + r) ^ token % 8
                line = out[at // 128, token]
                line[piece * 16 + 4 * c : piece * 16 + 4 * c + 4] = codes[token, at + 4 * r : at + 4 * r + 4]
    return out


def summed(codes: Tensor) -> Tensor:
    """[T, 128 G] -> [G + ceil(G / 16), T, 128], as csrc/activations.cuh has it."""
    tokens, padded = codes.shape
    groups = padded // 128
    sums = codes.view(tokens, groups, 128).sum(2).float() * 2.0**-14
    high = sums.bfloat16()
    parts = torch.stack((high, high, (sums - high.float()).bfloat16(), torch.zeros_like(high)), 2)
    parts[..., 3] = parts[..., 2]
    lines = torch.zeros(-(-groups // 16), tokens, 128, dtype=torch.uint8)
    for g in range(groups):
        for token in range(tokens):
            bytes_ = parts[token, g].view(torch.uint8)
            for i in range(2):
                start = ((g % 16 // 4 * 2 + i) ^ token % 8) * 16 + g % 4 * 4
                lines[g // 16, token, start : start + 4] = bytes_[4 * i : 4 * i + 4]
    return torch.cat((tiled(codes).view(torch.uint8) ^ 128, lines)).view(torch.int8)


@given(st.integers(1, 19), st.integers(1, 3), st.integers(0, 99))
def test_untiled_is_the_inverse(tokens: int, groups: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(-127, 128, (tokens, 128 * groups), dtype=torch.int8, generator=generator)
    assert torch.equal(untiled(tiled(codes)), codes)


def warps_operand(codes: Tensor, tile: int, slot: int, step: int, eight: bool) -> Tensor:
    """A [16, 32] of product `step` of a stage: bytes by lane and register as csrc/unpack.cuh gives them."""
    a = torch.zeros(16, 32, dtype=torch.int32)
    half, j = divmod(step, 2)
    for lane in range(32):
        g, c = divmod(lane, 4)
        if eight:
            own = codes[tile, 2 * slot + half].view(16, 4, 16)[:, c].int()
            words = torch.stack((own[g], own[g + 8])).view(2, 4, 4)[:, 2 * j : 2 * j + 2]  # row, r, byte
        else:
            own = codes[tile, slot, half * 512 + lane * 16 : half * 512 + lane * 16 + 16].int()
            both = own.view(2, 2, 4)[j]  # row, byte
            words = torch.stack((both & 15, both >> 4), dim=1)
        for row in range(2):
            for r in range(2):
                a[g + 8 * row, 16 * r + 4 * c : 16 * r + 4 * c + 4] = words[row, r]
    return a


@given(st.booleans(), st.integers(0, 99))
def test_operands_of_both_sides_meet(eight: bool, seed: int) -> None:
    """wgmma's sums over 32 inputs in its own order add up to the product."""
    weight = random_weight(0 if eight else 20, 20 if eight else 1, 256, PROFILES["fast"], seed)
    kernel = layout.to_kernel_order(weight, PROFILES["fast"])
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(-127, 128, (11, 256), dtype=torch.int8, generator=generator)
    lines = tiled(x).int()
    stored = kernel.codes8 if eight else kernel.codes4
    total = torch.zeros(16, 11, dtype=torch.int32)
    for slot in range(2):
        for step in range(4):
            a = warps_operand(stored, 0, slot, step, eight)
            # The descriptor's lines: two 16-byte pieces of each token, unswizzled by the token's number.
            b = torch.stack(
                [
                    torch.cat(
                        [
                            lines[slot, t, 16 * (piece ^ t % 8) : 16 * (piece ^ t % 8) + 16]
                            for piece in (2 * step, 2 * step + 1)
                        ]
                    )
                    for t in range(11)
                ]
            )
            total += (a.to(torch.uint8).view(torch.int8).int() if eight else a) @ b.T
    rows = weight.codes8[:16].int() if eight else unpack_nibbles(weight.codes4[:16], 256).int()
    assert torch.equal(total, rows @ x.int().T)


@given(
    st.sampled_from([Scales(0, True), Scales(1, True), Scales(2, False)]),
    st.integers(1, 9000),
    st.integers(1, 4000),
    st.integers(1, 600),
    st.integers(1, 224),
)
def test_whole_waves_are_left_and_none_is_idle(
    scales: Scales, tokens: int, rows16: int, groups: int, blocks: int
) -> None:
    tile = hopper.choose(scales, tokens, rows16, groups, blocks)
    tiles = tile.tiles(tokens, rows16)
    cut = tile.split(tiles, blocks)
    assert 0 <= cut <= tiles
    assert not tile.cut or (tiles - cut) % blocks == 0
    assert cut < 2 * blocks, "each block begins one cut tile and ends another, at most"


@pytest.mark.parametrize(
    ("tokens", "rows16", "groups", "bn", "cut"),
    [
        (128, 385, 32, 64, False),
        (64, 1793, 32, 64, False),
        (128, 513, 64, 64, False),
        (128, 256, 32, 64, True),
    ],
)
def test_few_tokens_go_whole_where_handing_over_takes_longer(
    tokens: int, rows16: int, groups: int, bn: int, cut: bool
) -> None:
    """As the layers of 6144, 28672, 8192 and 4096 channels were fastest on an H200 (docs/kernels.md)."""
    tile = hopper.choose(Scales(0, True), tokens, rows16, groups, 132)
    assert (tile.bn, tile.cut) == (bn, cut)
