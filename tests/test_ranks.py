"""Several processes give what one gives, and a lost one ends the others."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from mixllm.errors import MixllmError
from mixllm.plan import Plan
from mixllm.ranks import Ranks
from mixllm.records import LAYERS, PLAN
from tests.models import write_tiny

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module", params=["llama", "qwen3_moe"])
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of all runs, see tests/ranks_job.py; both ranks see tokens of a mixture's experts."""
    path = tmp_path_factory.mktemp("ranks")
    write_tiny(path / "model", request.param)
    wanted = [*("1", "whole"), *("2", "whole"), *("3", "whole"), *("2", "lost"), *("2", "hangs")]
    wanted += [*("1", "quantize"), *("2", "quantize"), *("1", "nearest"), *("2", "nearest")]
    command = [sys.executable, "-m", "tests.ranks_job", str(path / "model"), str(path), *wanted]
    subprocess.run(command, cwd=ROOT, check=True, timeout=300)
    return path


@pytest.fixture(scope="module")
def results(runs: Path) -> dict[int, list[dict[str, Tensor]]]:
    """What each process of runs of 1, 2 and 3 made."""
    found = {}
    for size in (1, 2, 3):
        out = runs / f"{size}-whole"
        for rank in range(size):
            assert (out / f"{rank}.code").read_text() == "0", (out / f"{rank}.err").read_text()
        found[size] = [load_file(out / f"{rank}.safetensors") for rank in range(size)]
    return found


def test_all_processes_have_the_same_bits(results: dict[int, list[dict[str, Tensor]]]) -> None:
    for ranks in results.values():
        for name, tensor in ranks[0].items():
            assert all(torch.equal(tensor, other[name]) for other in ranks[1:]), name


def test_several_give_what_one_gives(results: dict[int, list[dict[str, Tensor]]]) -> None:
    """The same widths; codes but for those on a border, since a Hessian's sum is taken in another order."""
    [one] = results[1]
    for size in (2, 3):
        several = results[size][0]
        assert several.keys() == one.keys()
        codes = [name for name in one if name.endswith(".codes")]
        differ = sum(int((one[name] != several[name]).sum()) for name in codes)
        assert differ <= 1e-3 * sum(one[name].numel() for name in codes)
        off = rows = 0
        for name, tensor in one.items():
            if name.endswith(".widths"):
                assert torch.equal(tensor, several[name])
            elif name.endswith(".seen"):
                torch.testing.assert_close(several[name], tensor, rtol=1e-2, atol=1e-9)
            elif name.endswith(".loss"):
                # A candidate's code that falls the other way changes its row's loss.
                off += int((~torch.isclose(several[name], tensor, rtol=1e-2, atol=1e-9)).sum())
                rows += len(tensor)
        assert off <= max(2, 1e-3 * rows)


def assert_as_good(one: Path, two: Path, most: float = 0.0) -> None:
    """Two checkpoints of one model, whose Hessians were summed in different orders. most: rows that have
    another width, of all: a code that falls the other way in a candidate changes its row's error."""
    assert sorted(file.name for file in one.iterdir()) == sorted(file.name for file in two.iterdir())
    plans = [Plan.load(out / PLAN).modules for out in (one, two)]
    assert plans[0].keys() == plans[1].keys()
    moved = {name: int((module.widths != plans[1][name].widths).sum()) for name, module in plans[0].items()}
    assert sum(moved.values()) <= most * sum(module.out_features for module in plans[0].values())
    tensors = [load_file(out / "model.safetensors") for out in (one, two)]
    assert tensors[0].keys() == tensors[1].keys()
    # Of the first block; the others are fed by rounded blocks, and what differs there grows on the way.
    codes = [name for name in tensors[0] if ".codes" in name and ".layers.0." in name]
    codes = [name for name in codes if not moved[name.rpartition(".")[0]]]
    assert codes
    differ = sum(int((tensors[0][name] != tensors[1][name]).sum()) for name in codes)
    assert differ <= 1e-3 * sum(tensors[0][name].numel() for name in codes)
    # Their layers are as good.
    layers = [json.loads((out / LAYERS).read_text()) for out in (one, two)]
    assert layers[0].keys() == layers[1].keys()
    for name, about in layers[0].items():
        assert layers[1][name]["error"] == pytest.approx(about["error"], rel=0.05), name


def test_the_whole_job_on_two_processes(runs: Path) -> None:
    one, two = (runs / f"{size}-quantize" for size in (1, 2))
    for out, ranks in ((one, 1), (two, 2)):
        for rank in range(ranks):
            assert (out / f"{rank}.code").read_text() == "0", (out / f"{rank}.err").read_text()
    assert (two / "0.json").read_text() == (two / "1.json").read_text()
    assert_as_good(one / "result", two / "result")


def test_two_processes_that_calibrate_nothing_write_what_one_does(runs: Path) -> None:
    one, two = (runs / f"{size}-nearest" for size in (1, 2))
    for rank in (0, 1):
        assert (two / f"{rank}.code").read_text() == "0", (two / f"{rank}.err").read_text()
    for name in ("model.safetensors", "config.json"):
        assert (two / "result" / name).read_bytes() == (one / "result" / name).read_bytes()


@pytest.mark.parametrize("mode", ["lost", "hangs"])
def test_a_lost_process_ends_the_others(runs: Path, mode: str) -> None:
    out = runs / f"2-{mode}"
    text = (out / "0.err").read_text()
    assert (out / "0.code").read_text() == "2"
    assert "process 0 of 2: another process is gone or hangs" in text
    assert "Traceback" not in text
    assert not list(out.glob("*.safetensors"))


def test_one_process_alone_has_all() -> None:
    one, tensor = Ranks(), torch.arange(5)
    one.add(tensor)
    one.largest(tensor)
    assert tensor.tolist() == [0, 1, 2, 3, 4] and one.share(tensor) is not None
    assert one.every("b") == ["b"] and one.tell("word") == "word"
    assert one.exchange({"x": tensor}, 7) == [({"x": tensor}, 7)]
    assert one.give(0, {"x": tensor}, 7) == ({"x": tensor}, 7)
    with one.one_first():
        pass


def test_too_few_samples_for_the_processes() -> None:
    assert [len(Ranks(rank, 3).share(torch.zeros(7, 2))) for rank in range(3)] == [3, 2, 2]
    with pytest.raises(MixllmError, match="2 windows of text are too few for 3 processes"):
        Ranks(0, 3).share(torch.zeros(2, 5))


@given(st.lists(st.floats(1, 100), min_size=1, max_size=12), st.integers(1, 5))
def test_work_is_divided_evenly(costs: list[float], size: int) -> None:
    owners = Ranks(0, size).owners(costs)
    busy = [0.0] * size
    for cost, owner in zip(costs, owners, strict=True):
        busy[owner] += cost
    # The longest first to whoever is free: never more than 4/3 of the best.
    assert max(busy) <= 4 / 3 * max(sum(costs) / size, max(costs)) + max(costs) / 3 + 1e-9


def test_an_error_without_words_is_told_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(*_: object) -> None:
        raise RuntimeError

    monkeypatch.setattr("torch.distributed.all_reduce", lost)
    with pytest.raises(
        MixllmError, match=r"process 1 of 2: another process is gone or hangs \(RuntimeError\)"
    ):
        Ranks(1, 2).add(torch.zeros(3))
