import errno
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from mixllm.errors import MixllmError
from mixllm.files import read_json, sweep, write_atomically, write_json


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_a_file_appears_whole(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a", lambda temporary: temporary.write_bytes(b"new") and None)
    assert (tmp_path / "a").read_bytes() == b"new" and names(tmp_path) == ["a"]


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt()])
def test_an_error_leaves_the_old_file_alone(tmp_path: Path, error: BaseException) -> None:
    (tmp_path / "a").write_bytes(b"old")

    def write(temporary: Path) -> None:
        temporary.write_bytes(b"half")
        raise error

    with pytest.raises(type(error)):
        write_atomically(tmp_path / "a", write)
    assert (tmp_path / "a").read_bytes() == b"old" and names(tmp_path) == ["a"]


def test_the_file_is_not_there_before_it_is_whole(tmp_path: Path) -> None:
    def write(temporary: Path) -> None:
        temporary.write_bytes(b"x")
        assert not (tmp_path / "a").exists() and temporary.parent == tmp_path

    write_atomically(tmp_path / "a", write)


def test_a_full_disk_is_a_one_line_error(tmp_path: Path) -> None:
    def write(temporary: Path) -> None:
        temporary.write_bytes(b"x")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(MixllmError, match=r"a: no space left"):
        write_atomically(tmp_path / "a", write)
    assert names(tmp_path) == []


def test_a_disk_that_safetensors_finds_full_is_one_too(tmp_path: Path) -> None:
    def write(temporary: Path) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    with pytest.raises(MixllmError, match="no space left"):
        write_atomically(tmp_path / "a", write)


def test_others_may_read_what_the_umask_lets_them(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(b"x")
    write_atomically(tmp_path / "a", lambda temporary: save_file({"x": torch.zeros(1)}, temporary))
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_json_keeps_order_and_comes_back(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"z": 1, "a": ["é"]})
    assert (tmp_path / "a.json").read_text(encoding="utf-8").index("z") < 10
    assert read_json(tmp_path / "a.json") == {"z": 1, "a": ["é"]}


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"{", "not valid JSON"), (b"\xff", "not valid JSON"), (b"[1]", "a JSON list"), (b"[" * 10**5, "JSON")],
)
def test_bad_json_is_a_one_line_error(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(MixllmError, match=reason) as error:
        read_json(tmp_path / "a.json")
    assert "\n" not in str(error.value) and "a.json" in str(error.value)


def test_a_missing_file_is_a_one_line_error(tmp_path: Path) -> None:
    with pytest.raises(MixllmError, match="No such file"):
        read_json(tmp_path / "a.json")


def test_what_a_process_killed_in_a_write_leaves_is_swept(tmp_path: Path) -> None:
    """The system ends a process at the first byte beyond the size that a file may have."""
    code = (
        "import resource, signal, sys, torch; from pathlib import Path; "
        "from mixllm.format.shards import save; "
        "signal.signal(signal.SIGXFSZ, signal.SIG_DFL); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)); "
        "save(Path(sys.argv[1]), {'weight': torch.zeros(3000)})"
    )
    below = tmp_path / "below"
    below.mkdir()
    done = subprocess.run([sys.executable, "-c", code, str(below / "part.safetensors")])
    assert done.returncode == -signal.SIGXFSZ
    assert len(list(below.iterdir())) == 2  # ours, still empty, and the library's
    (below / "part.safetensors").touch()
    sweep(tmp_path)
    assert [path.name for path in below.iterdir()] == ["part.safetensors"]
