"""Documents -> windows of token ids."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from mixllm.errors import MixllmError

# Characters that are tokenized at once, more than WikiText-2 has.
PIECE = 16_000_000


def windows(
    texts: Sequence[str], tokenizer: Any, length: int, count: int | None = None, seed: int | None = None
) -> Tensor:
    """Windows that do not overlap, int64 [n, length], in the order of the text.

    The documents are joined with blank lines and the tokens cut into consecutive windows, a rest
    left out, as GPTQ's code does (arXiv 2210.17323). Where the tokenizer puts a BOS token before a
    text, each window starts with one, since models trained so fail without it.

    count: None, all of them; else so many, spread evenly over the text, or drawn at random by `seed`.
    Raises MixllmError when the text is too short.
    """
    bos = _bos(tokenizer)
    joined = "\n\n".join(texts)
    tokens = torch.cat([_tokens(tokenizer, piece) for piece in pieces(joined)])
    step = length - len(bos)
    available = len(tokens) // step
    wanted = 1 if count is None else count
    if available < wanted:
        raise MixllmError(
            f"the text has {len(tokens)} tokens, but {wanted * step} are needed for {wanted} windows of "
            f"{length}; give more text, or fewer or shorter windows"
        )
    cut = tokens[: available * step].view(available, step).long()
    if count is not None:
        cut = cut[_chosen(available, count, seed)]
    return torch.cat([torch.tensor(bos, dtype=torch.int64).expand(len(cut), len(bos)), cut], dim=1)


def pieces(text: str, most: int = PIECE) -> Iterator[str]:
    """The text in stretches of at most so many characters, cut before a blank line, else a line's end or a
    space, where a tokenizer cuts too; one stretch if it is short enough."""
    start = 0
    while len(text) - start > most:
        found = (text.rfind(mark, start + 1, start + most) for mark in ("\n\n", "\n", " "))
        end = next((place for place in found if place > 0), start + most)
        yield text[start:end]
        start = end
    yield text[start:]


def _tokens(tokenizer: Any, text: str) -> Tensor:
    """int32 [n]: a tokenizer's own answer takes 150 bytes a character."""
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return torch.tensor(ids, dtype=torch.int32)


def _bos(tokenizer: Any) -> list[int]:
    bos = tokenizer.bos_token_id
    return [bos] if bos is not None and tokenizer("a")["input_ids"][:1] == [bos] else []


def _chosen(available: int, count: int, seed: int | None) -> Tensor:
    if seed is None:
        return torch.arange(count) * available // count
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(available, generator=generator)[:count].sort().values
