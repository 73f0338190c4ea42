"""A disk that fills up ends a run with one line; with space again, the run goes on to the same bytes."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.resume.conftest import Case, contents


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path | None]:
    """A small file system; None where only root may mount one."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True).returncode:
        yield None
        return
    yield tmp_path
    subprocess.run(["umount", str(tmp_path)], check=True)


def test_full_disk(case: Case, tmp_path: Path, disk: Path | None) -> None:
    """Filled at many moments. Where no disk can be made, files may be no larger than 100 bytes from then."""
    arguments, ballast = [*case.arguments, "-o", tmp_path / "out"], tmp_path / "ballast"
    reason = "no space left" if disk else "larger than a file may be here"
    failed = 0
    for event in range(6, 51, 4):
        how = {"fill": ballast} if disk else {"limit": 100}
        ended = case.forks.run(arguments, event=event, **how)
        if ended.code:  # now and then what the run itself deletes is space enough
            failed += 1
            assert (ended.code, ended.err.count("\n")) == (2, 1), ended
            assert f"{reason}; free some disk space and run again" in ended.err
            assert not (tmp_path / "out").exists()
            ballast.unlink(missing_ok=True)
            assert case.forks.run(arguments).code == 0
        assert contents(tmp_path / "out") == case.expected
        ballast.unlink(missing_ok=True)
        assert [path.name for path in tmp_path.iterdir()] == ["out"]
        shutil.rmtree(tmp_path / "out")
    assert failed > 6


def test_a_limit_on_files(case: Case, tmp_path: Path) -> None:
    arguments = [*case.arguments, "-o", tmp_path / "out"]
    ended = case.forks.run(arguments, event=10, limit=4096)
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert "larger than a file may be here" in ended.err
    assert case.forks.run(arguments).code == 0
    assert contents(tmp_path / "out") == case.expected


def test_too_little_space_is_refused_before_the_work(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mixllm.cli import main

    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 150_000}))
    monkeypatch.setattr("mixllm.choosing.measure_salience", lambda *_, **__: pytest.fail("began"))
    assert main.run([str(a) for a in (*case.arguments, "-o", tmp_path / "out")]) == 2
    assert "MB are needed, 0.1 MB are free" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
