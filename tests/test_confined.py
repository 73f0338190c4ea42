from pathlib import Path

import pytest

from mixllm import confined
from mixllm.confined import Bound, bounds


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(confined, "MEMBERSHIP", tmp_path / "membership")
    monkeypatch.setattr(confined, "TREE", tmp_path / "tree")
    return tmp_path


def group(directory: Path, **files: object) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (directory / f"memory.{name}").write_text(f"{content}\n")


def test_version_2_bounds_of_all_groups_above(tree: Path) -> None:
    (tree / "membership").write_text("0::/pods/one/job\n")
    stat = "anon 5\nactive_file 70\ninactive_file 30\nshmem 9\ntotal_active_file 1000"
    group(tree / "tree", stat=stat)  # the root has no bound
    group(tree / "tree/pods", max=5000, current=4900, stat=stat)
    group(tree / "tree/pods/one", max="max", current=400, stat=stat)
    group(tree / "tree/pods/one/job", max=1000, current=400, stat=stat)
    assert bounds() == [Bound(1000, 700), Bound(5000, 200)]


def test_version_1(tree: Path) -> None:
    (tree / "membership").write_text("8:pids:/x\n4:cpu,memory:/job\n0::/\n")
    stat = "cache 300\nactive_file 1\ntotal_active_file 200\ntotal_inactive_file 50"
    group(tree / "tree/memory/job", limit_in_bytes=1000, usage_in_bytes=900, stat=stat)
    assert bounds() == [Bound(1000, 350)]


def test_a_tree_that_begins_at_the_containers_own_group(tree: Path) -> None:
    """As Docker mounts it where /proc tells the host's path."""
    (tree / "membership").write_text("4:memory:/docker/0123abc\n")
    group(tree / "tree/memory", limit_in_bytes=1000, usage_in_bytes=2000, stat="total_inactive_file 10")
    assert bounds() == [Bound(1000, 0)]


def test_systems_without_groups(tree: Path) -> None:
    assert bounds() == []
    (tree / "membership").write_text("0::/job\n")
    assert bounds() == []
