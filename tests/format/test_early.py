"""A shard that is filled as its layers come has the bytes of one that is written whole."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.format.layers import packed_layers
from tests.models import write_tiny

from mixllm.config import PROFILES
from mixllm.format.checkpoint import assemble
from mixllm.format.config import QuantizedModule
from mixllm.format.early import Early, begin_early
from mixllm.format.mixed import MixedWeight
from mixllm.format.split import Stored
from mixllm.format.spool import Spool
from mixllm.source import Source, open_source


class Case:
    """A tiny model's layers, and how a checkpoint of them is begun and ended."""

    def __init__(self, path: Path, profile: str, shard_bytes: int) -> None:
        write_tiny(path / "float", "qwen2")
        self.source: Source = open_source(str(path / "float"))
        self.format, self.shard_bytes = PROFILES[profile], shard_bytes
        self.layers = dict(packed_layers(self.source, self.format))
        self.modules = {
            name: QuantizedModule(w.in_features, w.out_features, w.counts) for name, w in self.layers.items()
        }

    def blocks(self) -> list[dict[str, MixedWeight]]:
        found: dict[str, dict[str, MixedWeight]] = {}
        for name, weight in self.layers.items():
            found.setdefault(name.split(".")[2], {})[name] = weight
        return list(found.values())

    def begin(self, out: Path) -> Early:
        return begin_early(out, self.source, self.format, self.modules, self.shard_bytes)

    def spool(self, out: Path, early: Early | None) -> Spool:
        out.mkdir(exist_ok=True)
        spool = Spool(out / ".spool")
        for block in self.blocks():
            file = spool.append(block, {})
            if early is not None:
                early.take(file)
        return spool

    def assemble(self, out: Path, spool: Spool, early: Early | None) -> None:
        assemble(out, self.source, self.format, self.modules, spool, self.shard_bytes, early)


def files(directory: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in directory.iterdir()}


@pytest.fixture
def made(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[tuple[Case, dict[str, bytes]]]:
    """A case, and its checkpoint made without an early shard."""
    profile, shard_bytes = getattr(request, "param", ("fast", 60_000))
    case, plain = Case(tmp_path, profile, shard_bytes), tmp_path / "plain"
    case.assemble(plain, case.spool(plain, None), None)
    yield case, files(plain)


every = [(profile, size) for profile in PROFILES for size in (60_000, 10**9)]


@pytest.mark.parametrize("made", every, indirect=True)
def test_the_bytes_are_those_of_a_shard_written_whole(
    made: tuple[Case, dict[str, bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, plain = made
    monkeypatch.setattr("mixllm.format.early.PIECE", 1000)
    written: list[Path] = []
    monkeypatch.setattr("mixllm.format.checkpoint.save", lambda path, tensors: written.append(path))
    (out := tmp_path / "out").mkdir()
    early = case.begin(out)
    spool = case.spool(out, early)
    case.assemble(out, spool, early)
    early.close()
    here, shards = files(out), sorted(name for name in plain if name.endswith(".safetensors"))
    assert here[shards[0]] == plain[shards[0]]
    assert [path.name for path in written] == shards[1:]
    assert all(plain[name] == content for name, content in here.items())


def test_a_layer_of_another_dtype_than_expected(tmp_path: Path) -> None:
    """Group scales that float16 cannot hold are stored in float32: another file, known too late."""
    case = Case(tmp_path, "paper", 10**9)
    assert case.format.weight_scale == "group"
    name, weight = next(iter(case.layers.items()))
    wide = {**weight.tensors(), "scales4": weight.scales4.float()}
    case.layers[name] = MixedWeight(weight.in_features, **wide)
    plain, out = tmp_path / "plain", tmp_path / "out"
    case.assemble(plain, case.spool(plain, None), None)
    out.mkdir()
    early = case.begin(out)
    case.assemble(out, case.spool(out, early), early)
    early.close()
    assert files(out) == files(plain)


def test_a_full_disk_is_no_error(made: tuple[Case, dict[str, bytes]], tmp_path: Path) -> None:
    """What is wanted first is what the spool holds, and the shard can come later."""
    case, plain = made
    (out := tmp_path / "out").mkdir()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        early = case.begin(out)
        assert not early.finish(out / "model-00001-of-00002.safetensors", {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(out.iterdir())
    case.assemble(out, case.spool(out, early), early)
    early.close()
    assert files(out) == plain


def test_nothing_is_left_of_one_that_is_not_finished(
    made: tuple[Case, dict[str, bytes]], tmp_path: Path
) -> None:
    case, _ = made
    (out := tmp_path / "out").mkdir()
    early = case.begin(out)
    spool = case.spool(out, early)
    early.close()
    spool.remove()
    assert not list(out.iterdir())


def test_a_dtype_whose_place_is_not_known_leaves_the_shard_to_the_end(tmp_path: Path) -> None:
    tensors = {"a": Stored(None, "C64", (3,), 24)}
    early = Early(tmp_path / "model.safetensors", tensors, None, ["a"])  # type: ignore[arg-type]
    assert not early.finish(tmp_path / "model.safetensors", tensors)
    early.close()
    assert not list(tmp_path.iterdir())
