"""Codes of a few bits, close together: a row is one string of bits, cut into bytes from its low end.

Code i of a row is bits b i to b i + b - 1 of the string, whose bit j is bit j mod 8 of byte j // 8:

    3 bits    index    0   1   2   3             byte      0          1
              value    a   b   c   d       ->    bits 7..0   ccbbbaaa   0000dddc

With 4 bits that is two codes a byte, the one with the even index in the low half.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def packed_bytes(k: int, bits: int) -> int:
    """Bytes of a row of k codes."""
    return -(-k * bits // 8)


def pack_bits(values: Tensor, bits: int) -> Tensor:
    """uint8 [n, k] of 0..2^bits - 1 -> uint8 [n, ceil(k bits / 8)]; what is left of the last byte is 0."""
    codes, unit = _unit(bits)
    n, k = values.shape
    padded = grown(values, (0, -k % codes)).reshape(n, -(-k // codes), codes)
    packed = values.new_zeros(*padded.shape[:2], unit)
    for i in range(codes):
        byte, shift = divmod(i * bits, 8)
        packed[..., byte] |= padded[..., i] << shift
        if shift + bits > 8:
            packed[..., byte + 1] |= padded[..., i] >> 8 - shift
    return packed.flatten(1)[:, : packed_bytes(k, bits)]


def unpack_bits(packed: Tensor, k: int, bits: int) -> Tensor:
    """uint8 [n, ceil(k bits / 8)] -> uint8 [n, k] of 0..2^bits - 1."""
    codes, unit = _unit(bits)
    padded = grown(packed, (0, -packed.shape[1] % unit))
    padded = padded.reshape(len(packed), -(-k // codes), unit)
    values = packed.new_empty(*padded.shape[:2], codes)
    for i in range(codes):
        byte, shift = divmod(i * bits, 8)
        value = padded[..., byte] >> shift
        if shift + bits > 8:
            value = value | padded[..., byte + 1] << 8 - shift
        values[..., i] = value & (1 << bits) - 1
    return values.flatten(1)[:, :k]


def unused_bits(packed: Tensor, k: int, bits: int) -> bool:
    """Whether anything is in the last byte of a row of k codes beyond the last code."""
    used = k * bits % 8
    return bool(used and (packed[:, -1] >> used).any())


def _unit(bits: int) -> tuple[int, int]:
    """The fewest codes that fill whole bytes, and these bytes."""
    codes = 8 // math.gcd(bits, 8)
    return codes, codes * bits // 8


def grown(values: Tensor, amounts: tuple[int, ...], fill: float = 0) -> Tensor:
    """torch's pad, which copies even where there is nothing to add."""
    return torch.nn.functional.pad(values, amounts, value=fill) if any(amounts) else values
