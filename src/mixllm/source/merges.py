"""A SentencePiece BPE vocabulary without its merges, as a BPE model.

A GGUF file of a SentencePiece model lists pieces, and leaves it to the reader to find which pairs were
merged. Gemma's pieces stand in the order in which they were merged, and all pieces are reached by
merging others, so every cut of a piece into two others is a merge, with the earliest pieces' first.
"""

from __future__ import annotations

from tokenizers.models import BPE

BLANK = "▁"


def bpe_of(pieces: list[str], unknown: str | None) -> BPE:
    """The BPE model of these pieces, a piece's number being its place, with bytes for what none spells.

    unknown: the piece for what has neither. Runs of spaces are spelled as the tokenizer's normalizer will
    have them. The order of merges is that of Gemma's own tokenizer.json: by the merged piece, then the
    longer first half.
    """
    spelled = [BLANK * len(piece) if not piece.strip(" ") else piece for piece in pieces]
    numbers = {piece: number for number, piece in enumerate(spelled)}
    merges = [
        (piece[:cut], piece[cut:])
        for piece in spelled
        for cut in range(len(piece) - 1, 0, -1)
        if piece[:cut] in numbers and piece[cut:] in numbers
    ]
    return BPE(numbers, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
