"""A decoder's blocks as the library takes them: one call for a few tokens through all (csrc/decoder.h)."""

from __future__ import annotations

import ctypes
import operator
from collections.abc import Callable
from ctypes import POINTER, byref, c_float, c_int32, c_int64, c_void_p, pointer
from dataclasses import dataclass
from threading import Lock
from weakref import ref

import torch
from torch import Tensor

from mixllm.kernels.cpu import CpuLinear
from mixllm.kernels.cpu.library import Weight, load
from mixllm.kernels.cpu.ops import TYPES

# The cache grows by so many tokens at a time.
ROOM = 256


class Projection(ctypes.Structure):
    """MixllmProjection."""

    _fields_ = [("weight", POINTER(Weight)), ("bias", c_void_p)]


class Norm(ctypes.Structure):
    """MixllmNorm."""

    _fields_ = [("weight", c_void_p), ("eps", c_float)]


class Block(ctypes.Structure):
    """MixllmBlock."""

    _fields_ = [
        *((name, Projection) for name in ("query", "key", "value", "output", "gate", "up", "down")),
        *((name, Norm) for name in ("norm", "after", "query_norm", "key_norm")),
        ("keys", c_void_p), ("values", c_void_p), ("scaling", c_float),
    ]  # fmt: skip


class Step(ctypes.Structure):
    """MixllmStep."""

    _fields_ = [
        ("blocks", c_void_p), ("count", c_int64), ("norm", Norm),
        *((name, c_void_p) for name in ("x", "y", "cos", "sin")),
        *((name, c_int64) for name in ("tokens", "past", "room", "heads", "kv_heads", "head")),
        ("type", c_int32), ("isa", c_int32),
    ]  # fmt: skip


@dataclass(frozen=True)
class Linear:
    """A projection; bias [N] or None."""

    kernel: CpuLinear
    bias: Tensor | None


@dataclass(frozen=True)
class RmsNorm:
    """weight [hidden] or [head], in the model's dtype."""

    weight: Tensor
    eps: float


@dataclass(frozen=True)
class DecoderBlock:
    """linears: query, key, value, output, gate, up, down. norms: before attention, before the MLP, and of
    each head's query and key or None. scaling: of the scores."""

    linears: list[Linear]
    norms: list[RmsNorm | None]
    scaling: float


class Kept:
    """Keys and values of one sequence through all blocks, with room to write more behind them.

    tensors: [1, kv_heads, length, head] each, keys of block 0, values of block 0, keys of block 1, ...
    """

    def __init__(self, tensors: list[Tensor]) -> None:
        self.length = tensors[0].shape[2]
        self.room = (self.length // ROOM + 2) * ROOM
        _, heads, _, head = tensors[0].shape
        self.memory = tensors[0].new_empty(len(tensors), 1, heads, self.room, head)
        for memory, tensor in zip(self.memory, tensors, strict=True):
            memory[:, :, : self.length] = tensor
        self.tensors = tensors

    def holds(self, tensors: list[Tensor]) -> bool:
        """Whether these are the tensors that it gave last, and not others that somebody made."""
        return all(map(operator.is_, tensors, self.tensors))

    def has_room(self, tokens: int) -> bool:
        return self.length + tokens <= self.room

    def grow(self, tokens: int) -> list[Tensor]:
        """Take in tokens that were written; the tensors as they are now. Those given before stay right."""
        self.length += tokens
        self.tensors = list(self.memory[:, :, :, : self.length].unbind())
        return self.tensors


class Decoder:
    """Blocks of one shape and the norm behind them."""

    def __init__(self, blocks: list[DecoderBlock], norm: RmsNorm, head: int) -> None:
        self.described = (Block * len(blocks))()
        self.tensors: list[Tensor | CpuLinear] = []  # what the addresses are of
        for block, described in zip(blocks, self.described, strict=True):
            names = [name for name, *_ in Block._fields_]
            for name, linear in zip(names, block.linears, strict=False):
                setattr(described, name, self._projection(linear))
            for name, each in zip(names[7:], block.norms, strict=False):
                setattr(described, name, self._norm(each))
            described.scaling = block.scaling
        self.norm = self._norm(norm)
        query, key = blocks[0].linears[:2]
        self.heads, self.kv_heads = (each.kernel.numbers[1] // head for each in (query, key))
        self.head, self.isa = head, query.kernel.isa
        self.kept: Callable[[], Kept | None] = lambda: None
        self.one_at_a_time = Lock()

    def _projection(self, linear: Linear) -> Projection:
        bias = None if linear.bias is None else linear.bias.detach().float().contiguous()
        self.tensors += [linear.kernel] if bias is None else [linear.kernel, bias]
        return Projection(pointer(linear.kernel.described), None if bias is None else bias.data_ptr())

    def _norm(self, norm: RmsNorm | None) -> Norm:
        if norm is None:
            return Norm(None, 0.0)
        self.tensors.append(norm.weight)
        return Norm(norm.weight.data_ptr(), norm.eps)

    def run(
        self, x: Tensor, cos: Tensor, sin: Tensor, kept: Kept, blocks: range | None = None, norm: bool = True
    ) -> Tensor:
        """x [1, T, hidden], cos, sin [1, T, head] -> [1, T, hidden], all of one dtype.

        Writes the tokens' keys and values behind `kept`, which must have room, but does not count them
        (Kept.grow). blocks: those to run, in order; None, all. norm: whether the last norm follows.
        """
        blocks = range(len(self.described)) if blocks is None else blocks
        x, cos, sin = x.contiguous(), cos.contiguous(), sin.contiguous()
        y = torch.empty_like(x)
        step = Step(
            ctypes.addressof(self.described) + blocks.start * ctypes.sizeof(Block), len(blocks),
            self.norm if norm else Norm(None, 0.0),
            x.data_ptr(), y.data_ptr(), cos.data_ptr(), sin.data_ptr(), x.shape[1],
            kept.length, kept.room, self.heads, self.kv_heads, self.head, TYPES[x.dtype], self.isa,
        )  # fmt: skip
        with self.one_at_a_time:
            self._point_to(kept)
            if load().mixllm_decode(byref(step)):
                raise MemoryError("decoder: no memory for the quantized activations")
        return y

    def _point_to(self, kept: Kept) -> None:
        if self.kept() is not kept:
            pairs = zip(kept.memory[0::2], kept.memory[1::2], strict=True)
            for described, (keys, values) in zip(self.described, pairs, strict=True):
                described.keys, described.values = keys.data_ptr(), values.data_ptr()
            self.kept = ref(kept)
