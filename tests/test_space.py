from pathlib import Path

import pytest

from mixllm.errors import MixllmError
from mixllm.space import free_bytes, require_space


def test_what_is_free_is_told_of_a_place_that_is_not_made_yet(tmp_path: Path) -> None:
    assert free_bytes(tmp_path / "not/yet") == pytest.approx(free_bytes(tmp_path), rel=0.1)


def test_what_is_there_already_is_not_needed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = 1000
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": free}))
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/shard").write_bytes(bytes(500))
    require_space(tmp_path, 1500)
    with pytest.raises(MixllmError, match=r"0\.0 MB are needed, 0\.0 MB are free"):
        require_space(tmp_path, 1501)
