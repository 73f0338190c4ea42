"""What a run does with the work that another left: goes on, refuses in one line, or starts anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mixllm.errors import MixllmError
from mixllm.lock import locked
from mixllm.pipeline import quantize
from mixllm.resume import partial_of
from mixllm.rounding import walk
from tests.models import write_tiny
from tests.resume.conftest import TEXT, Notes, config, contents

BLOCKS = 3


def cut(root: Path, out: Path, monkeypatch: pytest.MonkeyPatch, blocks: int, **fields: Any) -> None:
    """Have a run die while it rounds, after so many whole blocks."""
    calls, per_block = 0, 7

    def dying(*given: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > blocks * per_block + 2:
            raise KeyboardInterrupt
        return pack(*given)

    pack = walk.pack  # type: ignore[attr-defined]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("mixllm.rounding.walk.pack", dying)
        quantize(str(root / "model"), out, config(root, **fields))


def interrupt(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("blocks", [0, 1, 2])
def test_goes_on_after_the_blocks_that_are_done(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, blocks: int
) -> None:
    out, told = tmp_path / "out", Notes()
    cut(root, out, monkeypatch, blocks)
    assert not out.exists()
    quantize(str(root / "model"), out, config(root), resume="require", progress=told)
    done = ("", ", 1 block rounded", ", 2 blocks rounded")[blocks]
    assert told.notes == [f"{partial_of(out)}: goes on where an earlier run stopped: salience measured{done}"]
    assert told.stages == {**({"round: blocks done": blocks} if blocks else {}), "round": BLOCKS - blocks}
    assert contents(out) == contents(root / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_walk_without_hessians_skips_what_is_done(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain: dict[str, Any] = {"rounding": "rtn", "clip": False, "bits": 4.0}
    quantize(str(root / "model"), tmp_path / "whole/out", config(root, **plain))
    told, out = Notes(), tmp_path / "cut/out"
    cut(root, out, monkeypatch, 1, **plain)
    quantize(str(root / "model"), out, config(root, **plain), progress=told)
    assert told.stages == {"round": BLOCKS - 1}
    assert contents(out) == contents(tmp_path / "whole/out")


@pytest.mark.parametrize(("place", "again"), [("tune_scales", True), ("assemble", False)])
def test_tuning_is_done_again_unless_it_was_done(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, again: bool
) -> None:
    quantize(str(root / "model"), tmp_path / "whole/out", config(root, tune=1))
    out, told = tmp_path / "cut/out", Notes()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(f"mixllm.writing.{place}", interrupt)
        quantize(str(root / "model"), out, config(root, tune=1))
    quantize(str(root / "model"), out, config(root, tune=1), progress=told)
    assert "round" not in told.stages and ("tune" in told.stages) == again
    assert contents(out) == contents(tmp_path / "whole/out")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"clip": False}, "clip was True, not False"),
        ({"bits": 4.8}, "bits was 5.0, not 4.8"),
        ({"samples": 3}, "samples was 4, not 3"),
        ({"seed": 7}, "seed was 0, not 7"),
    ],
)
def test_work_of_other_options_is_refused(
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fields: dict[str, Any],
    said: str,
) -> None:
    out = tmp_path / "out"
    cut(root, out, monkeypatch, 1)
    before = contents(partial_of(out))
    for resume in ("auto", "require"):
        with pytest.raises(MixllmError) as error:
            quantize(str(root / "model"), out, config(root, **fields), resume=resume)  # type: ignore[arg-type]
        message = str(error.value)
        what = f"{partial_of(out)}: salience measured, 1 block rounded by another run ({said})"
        assert message.startswith(what) and "--resume never" in message and "\n" not in message
    assert contents(partial_of(out)) == before, "what was refused is left as it was"


def test_work_of_another_model_or_text_is_refused(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    cut(root, out, monkeypatch, 1)
    write_tiny(tmp_path / "other", "llama", tie=True, seed=1)
    with pytest.raises(MixllmError, match="model differs"):
        quantize(str(tmp_path / "other"), out, config(root))
    (tmp_path / "other.txt").write_text(TEXT.replace("fox", "cat"))
    with pytest.raises(MixllmError, match="calibration differs"):
        quantize(str(root / "model"), out, config(root, calibration=str(tmp_path / "other.txt")))


def test_never_starts_anew(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, told = tmp_path / "out", Notes()
    cut(root, out, monkeypatch, 2)
    quantize(str(root / "model"), out, config(root), resume="never", progress=told)
    assert told.notes == [] and told.stages["salience: forward"] == told.stages["round"] == BLOCKS
    assert contents(out) == contents(root / "out")


def test_a_salience_outlives_a_change_of_the_budget(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quantize(str(root / "model"), tmp_path / "whole/out", config(root, bits=4.5, seed=0))
    out, told = tmp_path / "cut/out", Notes()
    cut(root, out, monkeypatch, 0)
    quantize(str(root / "model"), out, config(root, bits=4.5), progress=told)
    assert "salience: forward" not in told.stages
    assert contents(out) == contents(tmp_path / "whole/out")


def test_a_budget_with_no_choice_leaves_no_salience_behind(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    cut(root, out, monkeypatch, 0)
    quantize(str(root / "model"), out, config(root, bits=8))
    assert not (out / "mixllm/salience.safetensors").exists()


def test_a_salience_from_the_work_itself_is_read_before_that_goes(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    cut(root, out, monkeypatch, 1)
    kept = partial_of(out) / "mixllm/salience.safetensors"
    quantize(str(root / "model"), out, config(root), salience=kept, resume="never")
    assert (out / "model.safetensors").read_bytes() == (root / "out/model.safetensors").read_bytes()


def test_require_wants_something_to_go_on_with(root: Path, tmp_path: Path) -> None:
    with pytest.raises(MixllmError, match="no work there to go on with"):
        quantize(str(root / "model"), tmp_path / "out", config(root), resume="require")
    assert list(tmp_path.iterdir()) == []


def test_two_runs_in_one_directory_are_refused(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    cut(root, out, monkeypatch, 1)
    with locked(partial_of(out)):
        before = contents(partial_of(out))
        for resume in ("auto", "require", "never"):
            with pytest.raises(MixllmError, match="another run writes there"):
                quantize(str(root / "model"), out, config(root), resume=resume)  # type: ignore[arg-type]
        assert contents(partial_of(out)) == before
    quantize(str(root / "model"), out, config(root), resume="require")


def test_what_no_run_of_today_left_is_not_trusted(root: Path, tmp_path: Path) -> None:
    partial = partial_of(tmp_path / "out")
    (partial / ".spool").mkdir(parents=True)
    (partial / ".spool/00000.safetensors").write_bytes(b"junk")
    (partial / "model.safetensors").write_bytes(b"junk")
    quantize(str(root / "model"), tmp_path / "out", config(root))
    assert contents(tmp_path / "out") == contents(root / "out")
