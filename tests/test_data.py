"""Text sources and their windows."""

from __future__ import annotations

import gzip
import json
import os
import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mixllm.data import load_text, windows
from mixllm.data.cut import pieces
from tests.models import tiny_tokenizer
from tests.saying import says

PLAIN, WITH_BOS = tiny_tokenizer(), tiny_tokenizer(bos=True)
WORDS = st.lists(st.text(alphabet="the cat\né1", min_size=1, max_size=40), min_size=1, max_size=6)


def test_plain_text_is_one_document(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("one\n\ntwo é\n", encoding="utf-8")
    assert load_text(str(tmp_path / "a.md")) == ["one\n\ntwo é\n"]


def test_wikitext_rows_are_documents(tmp_path: Path) -> None:
    (tmp_path / "a.raw").write_text(" \n = Head = \n \n Text\u2028one . \n", encoding="utf-8")
    assert load_text(str(tmp_path / "a.raw")) == ["", " = Head = \n", "", " Text\u2028one . \n"]


def test_jsonl(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "one\\n", "url": 1}\n\n{"text": "two"}\n')
    assert load_text(str(file)) == ["one\n", "two"]
    for line, message in (
        ("{", "line 2: not JSON"),
        ("[" * 100_000, "line 2: not JSON"),
        ('{"txt": "a"}', 'line 2: not an object with a string "text"'),
        ('{"text": 3}', "line 2: not an object"),
        ("[]", "line 2: not an object"),
    ):
        file.write_text('{"text": "one"}\n' + line)
        with says(message):
            load_text(str(file))


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.json.gz", "a.json", "A.JSONL", "a.txt.gz", "a.raw.gz"])
def test_names_say_what_is_in_a_file(tmp_path: Path, name: str) -> None:
    """As C4's are called: c4-train.00000-of-01024.json.gz."""
    documents = '{"text": "one"}\n{"text": "two"}\n' if "json" in name.lower() else "one\ntwo\n"
    write = gzip.open if name.endswith(".gz") else open
    with write(tmp_path / name, "wt") as file:
        file.write(documents)
    expected = {".jsonl": ["one", "two"], ".txt": ["one\ntwo\n"], ".raw": ["one\n", "two\n"]}
    kind = Path(name.lower().removesuffix(".gz")).suffix
    assert load_text(str(tmp_path / name)) == expected[kind.replace(".json", ".jsonl")[:6]]


def test_a_damaged_gzip_file_is_one_line(tmp_path: Path) -> None:
    whole = gzip.compress(b'{"text": "one"}\n' * 900)
    for content in (b"not packed", whole[:-40], whole[:30] + b"xxxx" + whole[34:]):
        (tmp_path / "a.jsonl.gz").write_bytes(content)
        with says("a.jsonl.gz: cannot be read as UTF-8 text"):
            load_text(str(tmp_path / "a.jsonl.gz"))


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt"])
def test_a_byte_order_mark_is_no_text(tmp_path: Path, name: str) -> None:
    content = '{"text": "one"}' if name.endswith("l") else "one"
    (tmp_path / name).write_text(content, encoding="utf-8-sig")
    assert load_text(str(tmp_path / name)) == ["one"]


def test_half_a_surrogate_pair_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "a\ud800b \U0001f600"}))
    assert load_text(str(tmp_path / "a.jsonl")) == ["a\ufffdb \U0001f600"]


def test_a_pipe_is_no_file(tmp_path: Path) -> None:
    """Its text could be read once, and is wanted by every process of a run."""
    os.mkfifo(tmp_path / "pipe")
    with says("pipe: is no regular file; give one of text"):
        load_text(str(tmp_path / "pipe"))


def test_parquet(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["one", None, "two"], "n": [1, 2, 3]}), file)
    assert load_text(str(file)) == ["one", "two"]
    pyarrow.parquet.write_table(pyarrow.table({"n": [1]}), file)
    with says("a.parquet: no column text; it has n"):
        load_text(str(file))
    pyarrow.parquet.write_table(pyarrow.table({"text": [1, 2]}), file)
    with says("a.parquet: its column text holds no strings"):
        load_text(str(file))
    for column in ([1, 2], [["one"]], [b"one"]):
        pyarrow.parquet.write_table(pyarrow.table({"text": column}), file)
        with says("a.parquet: its column text holds no strings"):
            load_text(str(file))
    words = pyarrow.array(["one", "one"]).dictionary_encode()
    pyarrow.parquet.write_table(pyarrow.table({"text": words}), file)
    assert load_text(str(file)) == ["one", "one"]
    file.write_bytes(b"PAR1 not really")
    with says("a.parquet: cannot be read as Parquet"):
        load_text(str(file))


def test_hub_data_set(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load_dataset(name: str, config: str | None, *, split: str, streaming: bool) -> Any:
        asked.append((name, config, split, streaming))
        return ({"text": "x" * 3_000_000} for _ in range(9))

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    assert len(load_text("someone/set")) == 3
    load_text("wikitext:wikitext-2-raw-v1:test")
    assert asked == [
        ("someone/set", None, "train", True),
        ("wikitext", "wikitext-2-raw-v1", "test", True),
    ]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"body": "x"}], "has no column text"),
        ([{"text": ["x"]}], "has no column text of strings"),
        ([{"text": None}], "holds no text"),
        ([], "holds no text"),
        (ConnectionError("a\nb"), "not had from the hub"),
    ],
)
def test_hub_data_set_that_gives_nothing(monkeypatch: pytest.MonkeyPatch, rows: Any, message: str) -> None:
    def load_dataset(*_: Any, **__: Any) -> Any:
        if isinstance(rows, Exception):
            raise rows
        return rows

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    with says(message):
        load_text("someone/set")


def test_optional_package_that_is_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with says("someone/set: reading it needs datasets; pip install datasets"):
        load_text("someone/set")
    (tmp_path / "a.parquet").touch()
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with says("a.parquet: reading it needs pyarrow; pip install pyarrow"):
        load_text(str(tmp_path / "a.parquet"))


def test_bad_text_files(tmp_path: Path) -> None:
    for name in ("gone.txt", "gone.jsonl", "some/deep/gone"):
        with says("no such text file"):
            load_text(name)
    with says("is a directory; give a file"):
        load_text(str(tmp_path))
    (tmp_path / "linked").symlink_to("loop")
    (tmp_path / "loop").symlink_to("linked")
    with says("linked: is a link to loop, where nothing is; mend the link"):
        load_text(str(tmp_path / "linked"))
    (tmp_path / "empty.txt").write_text(" \n\n")
    with says("empty.txt: holds no text"):
        load_text(str(tmp_path / "empty.txt"))
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    with says("binary.txt: cannot be read as UTF-8"):
        load_text(str(tmp_path / "binary.txt"))


def test_builtin_text_is_long_and_without_repeats() -> None:
    texts = load_text("builtin")
    assert len(set(texts)) == len(texts) and all(len(text) >= 300 for text in texts)
    assert 700_000 < sum(map(len, texts)) < 5_000_000


@given(WORDS, st.integers(2, 17))
def test_windows_are_the_text_in_order(texts: list[str], length: int) -> None:
    tokens = PLAIN("\n\n".join(texts))["input_ids"]
    if len(tokens) < length:
        with says(f"has {len(tokens)} tokens, but {length} are needed"):
            windows(texts, PLAIN, length)
        return
    cut = windows(texts, PLAIN, length)
    assert cut.dtype == torch.int64 and cut.shape == (len(tokens) // length, length)
    assert cut.flatten().tolist() == tokens[: cut.numel()]


@given(st.text(alphabet="ab \n"), st.integers(1, 9))
def test_pieces_are_the_text_cut_before_blanks(text: str, most: int) -> None:
    found = list(pieces(text, most))
    assert "".join(found) == text and all(len(piece) <= most for piece in found)
    for before, after in pairwise(found):
        assert after[0] in " \n" or not set(before[1:]) & {" ", "\n"}


def test_pieces_have_the_tokens_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = load_text("builtin")[:9]
    whole = windows(texts, PLAIN, 17)
    cut: list[str] = []

    def short(text: str) -> list[str]:
        cut.extend(pieces(text, 1000))
        return cut

    monkeypatch.setattr("mixllm.data.cut.pieces", short)
    assert torch.equal(windows(texts, PLAIN, 17), whole) and len(cut) > 9


@given(WORDS, st.integers(2, 17))
def test_each_window_starts_with_bos_where_the_tokenizer_adds_it(texts: list[str], length: int) -> None:
    tokens = PLAIN("\n\n".join(texts))["input_ids"]
    if len(tokens) < length - 1:
        return
    cut = windows(texts, WITH_BOS, length)
    assert cut.shape[1] == length and cut[:, 0].eq(1).all()
    assert cut[:, 1:].flatten().tolist() == tokens[: cut[:, 1:].numel()]


@given(st.integers(1, 40), st.one_of(st.none(), st.integers(0, 9)), st.integers(1, 40))
def test_chosen_windows_are_distinct_and_in_order(available: int, seed: int | None, count: int) -> None:
    text = "".join(chr(ord("a") + i % 26) for i in range(available * 3))
    every = windows([text], PLAIN, 3).tolist()
    if count > len(every):
        with says(f"but {3 * count} are needed for {count} windows of 3"):
            windows([text], PLAIN, 3, count, seed)
        return
    numbered = windows([text], PLAIN, 3, count, seed)
    assert numbered.shape == (count, 3)
    assert torch.equal(numbered, windows([text], PLAIN, 3, count, seed))
    places = iter(every)
    assert all(any(window == other for other in places) for window in numbered.tolist())


def test_choice_is_spread_or_drawn() -> None:
    text = "".join(chr(33 + i) for i in range(90))
    every = windows([text], PLAIN, 3)
    assert torch.equal(windows([text], PLAIN, 3, 5), every[torch.tensor([0, 6, 12, 18, 24])])
    draws = {json.dumps(windows([text], PLAIN, 3, 5, seed).tolist()) for seed in range(8)}
    assert len(draws) > 5
