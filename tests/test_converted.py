"""Conversions of GGUF files: one a content, whole or not there, whatever ends a process."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import gguf
import pytest
from gguf import GGUFReader

import mixllm.source.converted as module
from mixllm.cli import main
from mixllm.config import QuantConfig
from mixllm.errors import MixllmError
from mixllm.estimate import Estimate, estimate
from mixllm.files import read_json
from mixllm.lock import locked
from mixllm.source.config import read_config
from mixllm.source.converted import PARTIAL, converted, place_of
from mixllm.source.gguf import convert, open_gguf, read_gguf_config
from tests.gguf_file import write_gguf

CONVERT = """
import os, pathlib, signal, sys
from mixllm.source import converted
real, how = converted.convert, sys.argv[2]
def slow(file, opened, out):
    real(file, opened, out)
    print("written", flush=True)
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    sys.stdin.read()
converted.convert = slow
print(converted.converted(pathlib.Path(sys.argv[1])))
"""


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("huggingface_hub.constants.HF_ASSETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_ASSETS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache/mixllm"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write_gguf(tmp_path / "tiny.gguf", tie=True)
    return tmp_path / "tiny.gguf"


@pytest.fixture
def count(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How many conversions there were."""
    calls = []

    def counted(*arguments: object) -> None:
        calls.append(arguments)
        convert(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "convert", counted)
    return lambda: len(calls)


def start(file: Path, how: str) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", CONVERT, str(file), how]
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)


def test_the_second_command_finds_what_the_first_has_made(
    file: Path, tmp_path: Path, own_cache: Path, count: Callable[[], int], capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 60)
    out = str(tmp_path / "deep/out")
    made = ["quantize", str(file), "-o", out, "--calibration", str(text), "--samples", "2", "--window", "24"]
    measured = ["eval", out, "--model", str(file), "--text", str(text), "--window", "24", "--quiet"]
    assert main.run([*made, "--quiet"]) == main.run(measured) == 0
    assert count() == 1
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out"]
    assert list(own_cache.iterdir()) == [place_of(file)]


def test_a_file_is_parsed_once(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers' reading of it is given what open_gguf() has parsed; of another file it is not."""
    parsed = []
    parse = GGUFReader.__init__

    def counted(reader: GGUFReader, path: Path, *arguments: object) -> None:
        parsed.append(Path(path))
        parse(reader, path, *arguments)

    monkeypatch.setattr(GGUFReader, "__init__", counted)
    converted(file)
    assert parsed == [file]
    read_gguf_config(file, open_gguf(file))
    assert parsed == [file] * 2 and gguf.GGUFReader is GGUFReader


def test_a_moved_copy_is_the_same_and_another_content_is_not(
    file: Path, tmp_path: Path, count: Callable[[], int]
) -> None:
    first = converted(file)
    (tmp_path / "elsewhere").mkdir()
    file.rename(tmp_path / "elsewhere/copy.gguf")
    os.utime(tmp_path / "elsewhere/copy.gguf", ns=(1, 1))
    assert converted(tmp_path / "elsewhere/copy.gguf") == first and count() == 1
    write_gguf(file, tie=False)
    assert converted(file) != first and count() == 2


def test_a_file_that_is_cut_short_leaves_nothing(file: Path, own_cache: Path) -> None:
    whole = file.read_bytes()
    for length in (0, 3, 20, 3000, len(whole) - 5000):
        file.write_bytes(whole[:length])
        with pytest.raises(MixllmError, match=r"tiny.gguf: (not a whole|transformers cannot)"):
            converted(file)
    assert list(own_cache.iterdir()) == []


def test_a_killed_process_leaves_nothing_that_looks_finished(file: Path, own_cache: Path) -> None:
    child = start(file, "kill")
    assert child.wait() == -signal.SIGKILL
    (left,) = own_cache.iterdir()
    assert (
        left.name.endswith(PARTIAL) and (left / "model.safetensors").is_file() and not place_of(file).exists()
    )
    (left / "stale.json").touch()
    found = converted(file)
    assert list(own_cache.iterdir()) == [found] and not (found / "stale.json").exists()


def test_what_a_killed_process_left_of_another_file_goes(file: Path, tmp_path: Path, own_cache: Path) -> None:
    assert start(file, "kill").wait() == -signal.SIGKILL
    write_gguf(tmp_path / "other.gguf", tie=False)
    converted(tmp_path / "other.gguf")
    assert list(own_cache.iterdir()) == [place_of(tmp_path / "other.gguf")]


def test_what_another_user_left_is_no_hindrance(
    file: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a cache that several share; its lock cannot be opened."""
    theirs = own_cache / f"theirs{PARTIAL}"
    theirs.mkdir(parents=True)

    def lock(directory: Path, **how: bool) -> AbstractContextManager[None]:
        if directory == theirs:
            raise PermissionError(errno.EACCES, "Permission denied", str(directory))
        return locked(directory, **how)

    monkeypatch.setattr("mixllm.source.converted.locked", lock)
    made = converted(file)
    assert set(own_cache.iterdir()) == {theirs, made}


def test_two_processes_at_once_convert_once(file: Path, own_cache: Path) -> None:
    first = start(file, "slowly")
    assert first.stdout is not None and first.stdin is not None and first.stdout.readline() == "written\n"
    second = start(file, "slowly")
    with pytest.raises(subprocess.TimeoutExpired):
        second.wait(timeout=8)  # it has imported all by then, and waits
    told, _ = first.communicate("")
    assert second.communicate("")[0] == told == f"{place_of(file)}\n"  # no "written" of its own
    assert list(own_cache.iterdir()) == [place_of(file)]


def test_another_file_is_converted_meanwhile(file: Path, tmp_path: Path, own_cache: Path) -> None:
    first = start(file, "slowly")
    assert first.stdout is not None and first.stdout.readline() == "written\n"
    write_gguf(tmp_path / "other.gguf", tie=False)
    other = converted(tmp_path / "other.gguf")
    told, _ = first.communicate("")
    assert {Path(told.strip()), other} == set(own_cache.iterdir()) and len({told, other}) == 2


def test_a_disk_without_room_is_told_before_the_work(
    file: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch, count: Callable[[], int]
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(
        MixllmError, match=r"tiny.gguf: .*0\.6 MB are needed, 0\.0 MB are free\); .* set HF_HOME"
    ):
        converted(file)
    assert count() == 0 and list(own_cache.iterdir()) == []


@pytest.mark.parametrize(
    "error",
    [OSError(28, "No space left on device"), Exception("No space left on device (os error 28)")],
    ids=["weights", "tokenizer"],
)
def test_a_disk_that_fills_up_is_one_line(
    file: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def filled(*_: object) -> None:
        raise error

    monkeypatch.setattr(module, "convert", filled)
    with pytest.raises(MixllmError, match=r"cannot be written to .* \(no space left\); .* set HF_HOME"):
        converted(file)
    assert list(own_cache.iterdir()) == []


def test_a_cache_that_is_no_directory_is_one_line(file: Path, own_cache: Path) -> None:
    own_cache.parent.mkdir()
    own_cache.write_text("")
    with pytest.raises(MixllmError, match=r"cannot be written to .* \(Not a directory\); .* set HF_HOME"):
        converted(file)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("tie", [False, True])
def test_a_dry_run_converts_nothing_and_tells_the_same(
    tmp_path: Path, own_cache: Path, half: bool, tie: bool
):
    file = tmp_path / "tiny.gguf"
    write_gguf(file, tie=tie, half=half)

    def told() -> Estimate:
        config = QuantConfig(window=256)
        return estimate(str(file), tmp_path / "out", config, device="cpu", dtype="auto", measured=True)

    before, config = told(), read_gguf_config(file, open_gguf(file))
    assert not own_cache.exists()
    place = converted(file)
    weights = (place / "model.safetensors").stat().st_size
    assert before.conversion_bytes == pytest.approx(weights, rel=0.05)
    after = told()
    assert after.conversion_bytes == 0
    assert (before.checkpoint_bytes, before.disk_bytes) == (after.checkpoint_bytes, after.disk_bytes)
    kept = read_config(place)
    assert (config.tie_word_embeddings, config.dtype) == (kept.tie_word_embeddings, kept.dtype)
    assert read_json(place / "config.json")["model_type"] == config.model_type
