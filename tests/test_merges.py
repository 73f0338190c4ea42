from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import gguf
from tokenizers import AddedToken, Tokenizer, normalizers
from tokenizers.models import BPE, Unigram
from tokenizers.trainers import BpeTrainer

from mixllm.source.gguf import _mend_merges, _metadata, open_gguf
from mixllm.source.merges import bpe_of

TEXT = "the theme of the other anthem is then that the thin hen in the inn hath heather in it " * 3
UNKNOWN = "<unk>"


def trained() -> Tokenizer:
    """A BPE tokenizer that has its merges, spelled as Gemma's."""
    tokenizer = Tokenizer(BPE(unk_token=UNKNOWN, fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    trainer = BpeTrainer(vocab_size=90, special_tokens=[UNKNOWN, "<end>"], show_progress=False)
    tokenizer.train_from_iterator(TEXT.split(), trainer)
    return tokenizer


def pieces_of(tokenizer: Tokenizer) -> list[str]:
    vocabulary = tokenizer.get_vocab()
    return sorted(vocabulary, key=vocabulary.__getitem__)


def test_merges_are_found_from_the_order_of_pieces() -> None:
    whole = trained()
    again = Tokenizer(bpe_of(pieces_of(whole), UNKNOWN))
    again.normalizer = whole.normalizer
    for word in TEXT.split():
        assert again.encode(word).ids == whole.encode(word).ids
    assert len(again.encode("the").ids) == 1


def test_runs_of_spaces_are_spelled_as_normalized_and_bytes_stand_for_the_rest() -> None:
    pieces = [UNKNOWN, *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "  ", "    "]
    model = Tokenizer(bpe_of(pieces, UNKNOWN))
    assert [token for token in model.encode("▁▁▁▁▁a").tokens] == ["▁▁▁▁", "▁", "a"]
    assert model.encode("é").tokens == ["<0xC3>", "<0xA9>"]


def test_a_unigram_reading_of_a_sentencepiece_bpe_is_mended(tmp_path: Path) -> None:
    whole = trained()
    pieces = pieces_of(whole)
    file = tmp_path / "gemma.gguf"
    writer = gguf.GGUFWriter(file, "gemma3")
    writer.add_tokenizer_model("llama")
    writer.add_token_list([*pieces, "   "])
    control = [gguf.TokenType.CONTROL if p.startswith("<") else gguf.TokenType.NORMAL for p in pieces]
    writer.add_token_types([*control, gguf.TokenType.USER_DEFINED])
    writer.add_unk_token_id(0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    opened = open_gguf(file)
    # As transformers 5.17 reads it: scores that favour single characters.
    backend = Tokenizer(Unigram([(piece, -float(len(piece))) for piece in pieces], 0, False))
    backend.normalizer = whole.normalizer
    backend.add_special_tokens([AddedToken(UNKNOWN, normalized=False, special=True)])
    _mend_merges(SimpleNamespace(backend_tokenizer=backend), _metadata(opened), opened)
    assert backend.encode("the").tokens == ["the"]
    assert backend.encode("the<end>then").tokens == ["the", "<end>", "then"]
    assert backend.encode("<end>", add_special_tokens=False).ids == [pieces.index("<end>")]
    assert "   " not in backend.get_vocab()  # spelled otherwise, so no token of its own
    mended = backend.to_str()
    _mend_merges(SimpleNamespace(backend_tokenizer=backend), _metadata(opened), opened)
    assert backend.to_str() == mended
