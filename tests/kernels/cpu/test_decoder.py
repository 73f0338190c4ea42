"""One block in one call against the same formulas in torch, on every instruction set."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.nn.functional import rms_norm, scaled_dot_product_attention, silu

from mixllm.config import Format
from mixllm.format.pack import pack
from mixllm.kernels import cpu
from mixllm.kernels.cpu import decoder
from mixllm.kernels.cpu.decoder import Decoder, DecoderBlock, Kept, Linear, RmsNorm
from mixllm.kernels.cpu.ops import TYPES
from tests.kernels.cpu.guard import guarded
from tests.kernels.test_reference import rounded

HIDDEN, INNER, HEADS, KV_HEADS = 40, 53, 6, 2
isas = pytest.mark.parametrize("isa", cpu.instruction_sets())
heads = pytest.mark.parametrize("head", [2, 16, 22, 64, 86])


@dataclass
class Case:
    """A block, its input x [1, T, hidden], and a cache of `past` tokens."""

    block: DecoderBlock
    x: Tensor
    cos: Tensor
    sin: Tensor
    cache: list[Tensor]


def case(isa: str, head: int, tokens: int, past: int, dtype: torch.dtype, head_norms: bool = True) -> Case:
    torch.manual_seed(head + past)
    format = Format()

    def linear(i: int, n: int, k: int) -> Linear:
        kernel = cpu.prepare(pack(rounded(format, n, k, 0.2, i), format), format, isa)
        return Linear(kernel, torch.randn(n).to(dtype) if i % 2 else None)

    def norm(n: int) -> RmsNorm:
        return RmsNorm((torch.rand(n) + 0.5).to(dtype), 1e-5)

    wide, narrow = HEADS * head, KV_HEADS * head
    sizes = [(wide, HIDDEN), (narrow, HIDDEN), (narrow, HIDDEN), (HIDDEN, wide)]
    sizes += [(INNER, HIDDEN), (INNER, HIDDEN), (HIDDEN, INNER)]
    linears = [linear(i, *size) for i, size in enumerate(sizes)]
    norms = [norm(HIDDEN), norm(HIDDEN), *((norm(head), norm(head)) if head_norms else (None, None))]
    cos, sin = torch.randn(2, 1, tokens, head).to(dtype)
    cache = [torch.randn(1, KV_HEADS, past, head).to(dtype) for _ in range(2)]
    x = torch.randn(1, tokens, HIDDEN).to(dtype)
    return Case(DecoderBlock(linears, norms, head**-0.5), x, cos, sin, cache)


def expected(c: Case) -> tuple[Tensor, Tensor, Tensor]:
    """The block's output, and all keys and values."""
    head, tokens = c.cos.shape[-1], c.x.shape[1]
    q, k, v, o, gate, up, down = (
        (lambda x, each=each: each.kernel(x, each.bias)) for each in c.block.linears
    )

    def norm(x: Tensor, which: int) -> Tensor:
        n = c.block.norms[which]
        if n is None:
            return x
        return n.weight * rms_norm(x.float(), x.shape[-1:], None, n.eps).to(x.dtype)

    def turned(x: Tensor) -> Tensor:
        a, b = x.chunk(2, dim=-1)
        return x * c.cos + torch.cat((-b, a), dim=-1) * c.sin

    def split(x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, head)).transpose(1, 2)

    x = norm(c.x, 0)
    keys = torch.cat((c.cache[0], turned(norm(split(k(x)), 3))), dim=2)
    values = torch.cat((c.cache[1], split(v(x))), dim=2)
    seen = torch.ones(tokens, keys.shape[2]).tril(keys.shape[2] - tokens).bool()
    mixed = scaled_dot_product_attention(
        turned(norm(split(q(x)), 2)).float(), keys.float(), values.float(), seen, scale=c.block.scaling,
        enable_gqa=True,
    )  # fmt: skip
    y = c.x + o(mixed.to(c.x.dtype).transpose(1, 2).flatten(2))
    x = norm(y, 1)
    return y + down(silu(gate(x)) * up(x)), keys, values


@isas
@heads
@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("tokens, past", [(1, 1), (1, 15), (2, 16), (3, 17), (16, 300)])
def test_agrees_with_the_formulas(isa: str, head: int, dtype: torch.dtype, tokens: int, past: int) -> None:
    c = case(isa, head, tokens, past, dtype, head_norms=head != 16)
    kept = Kept(c.cache)
    norm = RmsNorm(torch.ones(HIDDEN, dtype=dtype), 1e-5)
    y = Decoder([c.block], norm, head).run(c.x, c.cos, c.sin, kept, norm=False)
    wanted, *cache = expected(c)
    for ours, theirs in zip(kept.grow(tokens), cache, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0.02, atol=1e-2)
        assert torch.equal(ours[:, :, :past], theirs[:, :, :past])
    # Where an activation differs in its last bit, its int8 code may differ by one.
    apart = (y.float() - wanted.float()).norm() / wanted.float().norm()
    assert float(apart) < 0.01


def test_the_last_norm() -> None:
    c = case("portable", 16, 3, 5, torch.bfloat16)
    norm = RmsNorm(torch.rand(HIDDEN).bfloat16(), 1e-3)
    y = Decoder([c.block], norm, 16).run(c.x, c.cos, c.sin, Kept(c.cache), range(0))
    scaled = rms_norm(c.x.float(), (HIDDEN,), None, 1e-3).bfloat16()
    torch.testing.assert_close(y, norm.weight * scaled, rtol=0.01, atol=0)


def test_scores_that_are_far_apart() -> None:
    """One key takes all; what is left of the others is nothing, and never subnormal or NaN."""
    c = case("portable", 16, 1, 40, torch.float32)
    c.block = DecoderBlock(c.block.linears, c.block.norms, 1e4)
    norm = RmsNorm(torch.ones(HIDDEN), 1e-5)
    for isa in cpu.instruction_sets():
        d = Decoder([c.block], norm, 16)
        d.isa = cpu.instruction_sets().index(isa)
        y = d.run(c.x, c.cos, c.sin, Kept(c.cache), norm=False)
        torch.testing.assert_close(y, expected(c)[0], rtol=0.01, atol=0.01)


@isas
def test_a_bad_token_spoils_those_after_it_alone(isa: str) -> None:
    c = case(isa, 22, 4, 9, torch.float32)
    d, kept = Decoder([c.block], RmsNorm(torch.ones(HIDDEN), 1e-5), 22), Kept(c.cache)
    clean = d.run(c.x, c.cos, c.sin, kept)
    c.x[0, 2, 7] = torch.nan
    y = d.run(c.x, c.cos, c.sin, kept)
    assert torch.equal(y[:, :2], clean[:, :2]) and bool(y[:, 2:].isnan().all())


@isas
@heads
def test_nothing_is_touched_past_a_tensors_end(isa: str, head: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inputs and norms end where a page ends, and the cache is filled to its last place."""
    monkeypatch.setattr(decoder, "ROOM", 1)
    c = case(isa, head, 2, 31, torch.bfloat16)
    kept = Kept(c.cache)
    assert kept.has_room(2) and not kept.has_room(3)
    weights = [norm.weight for norm in c.block.norms if norm is not None]
    norm = torch.ones(HIDDEN, dtype=torch.bfloat16)
    wanted = Decoder([c.block], RmsNorm(norm, 1e-5), head).run(c.x, c.cos, c.sin, kept)
    written = kept.memory.clone()
    with guarded([c.x, c.cos, c.sin, norm, kept.memory, *weights]) as (x, cos, sin, last, memory, *own):
        kept.memory = memory
        block = DecoderBlock(c.block.linears, [RmsNorm(weight, 1e-5) for weight in own], c.block.scaling)
        y = Decoder([block], RmsNorm(last, 1e-5), head).run(x, cos, sin, kept)
        assert torch.equal(y, wanted) and torch.equal(memory, written)
