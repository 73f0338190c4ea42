"""Reading the documents that a --calibration or --text option names."""

from __future__ import annotations

import gzip
import importlib
import io
import json
import re
import zlib
from pathlib import Path
from typing import Any

from mixllm.data.builtin import builtin_text
from mixllm.errors import MixllmError, one_line
from mixllm.files import at_home, require_link

# Of a hub data set, the first so many characters: about 1,000 windows of 2,048 tokens.
HUB_CHARACTERS = 8_000_000
UTF8 = "utf-8-sig"  # a mark of byte order, which some editors put first, is left out
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?(:[\w.-]+){0,2}")

SUFFIXES = (".txt", ".raw", ".json", ".jsonl", ".parquet", ".gz")


def load_text(spec: str) -> list[str]:
    """The documents of `spec`, none of them blank but for rows of WikiText.

    "builtin": Python's own documentation (see mixllm.data.builtin).
    *.jsonl, *.json: {"text": ...} a line. *.parquet: its column "text" (needs pyarrow).
    *.raw: WikiText as distributed; a document a row as the hub's data set has them, so that joining
        them with blank lines gives the text that papers measure perplexity on.
    Any other file: one document of UTF-8 text. *.gz: packed so; its name without .gz says what it holds.
    name[:config[:split]]: a hub data set's column "text", its beginning (needs datasets).
    Raises MixllmError for what is missing, unreadable or holds no text.
    """
    require_text(spec)
    if spec == "builtin":
        return builtin_text()
    path = at_home(spec)
    texts = _read_file(path) if path.is_file() else _read_hub(spec)
    if not any(text.strip() for text in texts):
        raise MixllmError(f"{spec}: holds no text")
    return texts


def require_text(spec: str) -> None:
    """Raise MixllmError for what load_text would find missing here; the hub is not asked."""
    path = at_home(spec)
    if not spec:
        raise MixllmError("text: its name is empty; give a file, a hub data set or builtin")
    require_link(path)
    if path.is_dir():
        raise MixllmError(f"{spec}: is a directory; give a file of text in it")
    if path.exists() and not path.is_file():
        raise MixllmError(f"{spec}: is no regular file; give one of text")
    if not path.is_file() and (path.suffix in SUFFIXES or not HUB_NAME.fullmatch(spec)):
        raise MixllmError(f"{spec}: no such text file")


def _read_file(path: Path) -> list[str]:
    packed = path.suffix.lower() == ".gz"
    kind = (path.with_suffix("") if packed else path).suffix.lower()
    if kind == ".parquet" and not packed:
        return _read_parquet(path)
    try:
        with gzip.open(path, "rt", encoding=UTF8) if packed else path.open(encoding=UTF8) as file:
            text = file.read()
    except (UnicodeDecodeError, OSError, EOFError, zlib.error) as error:
        raise MixllmError(f"{path}: cannot be read as UTF-8 text ({one_line(error)})") from None
    if kind in (".jsonl", ".json"):
        lines = enumerate(io.StringIO(text), 1)
        return [_text_of(line, f"{path}: line {number}") for number, line in lines if line.strip()]
    if kind == ".raw":
        return [line if line.strip() else "" for line in io.StringIO(text)]
    return [text]


def _text_of(line: str, where: str) -> str:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        raise MixllmError(f"{where}: not JSON") from None
    if not isinstance(record, dict) or not isinstance(record.get("text"), str):
        raise MixllmError(f'{where}: not an object with a string "text"; give one such object a line')
    # Half of a pair of surrogates, which JSON can hold, is no character, and tokenizers stop there.
    return str(record["text"]).encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _read_parquet(path: Path) -> list[str]:
    parquet = _optional("pyarrow.parquet", path)
    try:
        names = parquet.read_schema(path).names
        columns = [name for name in names if name == "text"]
        texts = [text for column in parquet.read_table(path, columns=columns) for text in column.to_pylist()]
    except (OSError, ValueError, NotImplementedError) as error:
        raise MixllmError(f"{path}: cannot be read as Parquet ({one_line(error)})") from None
    if "text" not in names:
        raise MixllmError(f"{path}: no column text; it has {', '.join(names) or 'none'}")
    if not all(isinstance(text, str) for text in texts if text is not None):
        raise MixllmError(f"{path}: its column text holds no strings")
    return [text for text in texts if text]


def _read_hub(spec: str) -> list[str]:
    datasets = _optional("datasets", spec)
    name, config, split = (*spec.split(":"), "", "")[:3]
    texts: list[str] = []
    characters = 0
    try:
        for row in datasets.load_dataset(name, config or None, split=split or "train", streaming=True):
            text = row["text"]
            if not isinstance(text, str | None):
                raise KeyError("text")
            texts.append(text or "")
            characters += len(texts[-1])
            if characters >= HUB_CHARACTERS:
                break
    except KeyError:
        raise MixllmError(f"{spec}: the data set has no column text of strings") from None
    except Exception as error:  # whatever the network, the hub or a data set's files raise
        raise MixllmError(f"{spec}: not a file, and not had from the hub ({one_line(error)})") from None
    return texts


def _optional(package: str, where: Any) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError:
        needed = package.partition(".")[0]
        raise MixllmError(f"{where}: reading it needs {needed}; pip install {needed}") from None
