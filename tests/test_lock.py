"""One run at a time in a directory, and no lock outlives its process."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mixllm.errors import MixllmError
from mixllm.lock import LOCK, locked, release

HOLD = """
import pathlib, sys, time
from mixllm.lock import locked
with locked(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def hold(directory: Path) -> subprocess.Popen[str]:
    child = subprocess.Popen([sys.executable, "-c", HOLD, str(directory)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None and child.stdout.readline() == "held\n"
    return child


def test_another_process_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    child = hold(tmp_path / "work")
    refused = pytest.raises(MixllmError, match=rf"another run writes there \(process {child.pid}\)")
    with refused, locked(tmp_path / "work"):
        pass
    child.send_signal(signal.SIGKILL)
    child.wait()
    with locked(tmp_path / "work"):
        assert int((tmp_path / "work" / LOCK).read_text()) == os.getpid()


def test_a_second_run_in_one_process_is_refused_too(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(MixllmError, match="another run"), locked(tmp_path):
        pass


def test_a_file_system_without_locks_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", lacking)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(MixllmError, match=r"cannot be locked \(No locks available\)"), locked(tmp_path):
        pass
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_lock_is_free_again_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="x"), locked(tmp_path):
        raise ValueError("x")
    with locked(tmp_path):
        pass


def test_a_directory_that_took_another_name_leaves_its_old_name_free(tmp_path: Path) -> None:
    with locked(tmp_path / "work"):
        (tmp_path / "work").rename(tmp_path / "done")
        with locked(tmp_path / "work"):
            release(tmp_path / "done")
    assert list((tmp_path / "done").iterdir()) == []


def test_who_opened_the_file_before_it_lost_its_name_does_not_hold_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    real = fcntl.flock

    def slow(handle: int, how: int) -> None:
        monkeypatch.setattr("fcntl.flock", real)
        (tmp_path / "work").rename(tmp_path / "done")  # between opening and locking
        real(handle, how)

    monkeypatch.setattr("fcntl.flock", slow)
    with locked(tmp_path / "work"):
        assert (tmp_path / "work" / LOCK).exists()
        with pytest.raises(MixllmError), locked(tmp_path / "work"):
            pass


def test_where_no_directory_can_be_made() -> None:
    refused = pytest.raises(MixllmError, match=r"/proc/work: no directory can be made there")
    with refused, locked(Path("/proc/work")):
        pass
