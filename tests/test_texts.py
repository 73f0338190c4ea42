"""A tokenizer and a text that do not fit a model are told before anything is computed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from transformers import AutoConfig

from mixllm.errors import MixllmError
from mixllm.texts import answer_tokens, context, open_tokenizer, prompt_tokens, text_windows
from tests.models import VOCAB, write_tiny

CONTEXT = 256


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("texts") / "model"
    write_tiny(root, "llama")
    (root.parent / "text.txt").write_text("The thin man in the inn. " * 99)
    return root


def cut(model: Path, length: int, **changed: int | None) -> list[list[int]]:
    config = AutoConfig.from_pretrained(model, **changed)
    text = str(model.parent / "text.txt")
    return text_windows(text, open_tokenizer(model), config, length).tolist()


def test_windows_are_as_long_as_the_model_can_read(model: Path):
    assert {len(window) for window in cut(model, CONTEXT)} == {CONTEXT}
    with pytest.raises(MixllmError, match=r"\Awindow: 257 tokens, but the model reads at most 256; [^\n]*\Z"):
        cut(model, CONTEXT + 1)


def test_tokens_that_the_model_does_not_have(model: Path):
    most = max(max(window) for window in cut(model, 50))
    assert cut(model, 50, vocab_size=most + 1) == cut(model, 50, vocab_size=VOCAB)
    message = (
        rf"\A{re.escape(str(model.parent))}/text.txt: .*token {most}, but the model has {most}; [^\n]*\Z"
    )
    with pytest.raises(MixllmError, match=message):
        cut(model, 50, vocab_size=most)


def test_a_text_that_is_too_short_is_named(model: Path):
    config, text = AutoConfig.from_pretrained(model), str(model.parent / "text.txt")
    with pytest.raises(MixllmError, match=r"text.txt: the text has \d+ tokens, but"):
        text_windows(text, open_tokenizer(model), config, 250, 99)


def test_a_directory_without_a_tokenizer_says_so(tmp_path: Path):
    with pytest.raises(MixllmError, match=r"\(no tokenizer.json or other file of one\)$"):
        open_tokenizer(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", None])
def test_a_tokenizer_that_cannot_be_opened_is_one_line(tmp_path: Path, content: str | None):
    write_tiny(tmp_path, "llama")
    for file in tmp_path.glob("tokenizer*"):
        file.unlink()
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    message = rf"\A{re.escape(str(tmp_path))}: its tokenizer cannot be opened; [^\n]*\Z"
    with pytest.raises(MixllmError, match=message):
        open_tokenizer(tmp_path)


def test_a_prompt_that_leaves_no_room_for_an_answer(model: Path):
    config, tokenizer = AutoConfig.from_pretrained(model), open_tokenizer(model)
    last = prompt_tokens(tokenizer, "x" * (CONTEXT - 1), config)
    assert answer_tokens(last, config, "--prompt", 50) == 1
    assert answer_tokens(prompt_tokens(tokenizer, "x" * 9, config), config, "--prompt", 50) == 50
    with pytest.raises(MixllmError, match=r"--prompt: 256 tokens, but the model reads at most 256; "):
        prompt_tokens(tokenizer, "x" * CONTEXT, config)


def test_what_a_model_reads_at_most_by_its_configs_own_word():
    assert context(AutoConfig.for_model("mpt", max_seq_len=77)) == 77
    assert context(AutoConfig.for_model("opt", max_position_embeddings=78)) == 78
    assert context(AutoConfig.for_model("bloom")) is None
    assert context(AutoConfig.for_model("xlnet")) is None
