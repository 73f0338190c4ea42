import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from tests.cli.conftest import BUDGET, Tiny
from tests.gguf_file import write_gguf

from mixllm import pipeline
from mixllm.cli import main
from mixllm.errors import MixllmError
from mixllm.plan import Plan
from mixllm.records import PLAN, SALIENCE
from mixllm.source.converted import place_of


def quantize(tiny: Tiny, out: Path, *more: object) -> int:
    given = ["quantize", tiny.model, "-o", out, "--calibration", tiny.text, *BUDGET, *more]
    return main.run([str(argument) for argument in given])


def test_leaves_a_checkpoint_a_plan_and_a_salience(tiny: Tiny):
    assert (tiny.out / "config.json").exists()
    assert Plan.load(tiny.out / PLAN).budget == 5
    assert (tiny.out / SALIENCE).exists()


def test_progress_goes_to_standard_error_and_the_result_to_standard_output(
    tiny: Tiny, tmp_path: Path, capsys
):
    assert quantize(tiny, tmp_path / "out") == 0
    captured = capsys.readouterr()
    assert captured.out.startswith(f"{tmp_path / 'out'}: ") and "bits a weight" in captured.out
    assert "salience" in captured.err and "round" in captured.err


def test_json_and_quiet(tiny: Tiny, tmp_path: Path, capsys):
    assert quantize(tiny, tmp_path / "out", "--json", "--quiet", "--plan", tiny.out / PLAN) == 2
    assert "--bits: has no effect" in capsys.readouterr().err
    arguments = ["quantize", tiny.model, "-o", tmp_path / "out", "--calibration", tiny.text, "--samples", "4"]
    flags = ["--window", "40", "--plan", tiny.out / PLAN, "--json", "--quiet"]
    assert main.run([str(argument) for argument in (*arguments, *flags)]) == 0
    captured = capsys.readouterr()
    summary = json.loads(captured.out)
    assert captured.err == "" and 4.9 < summary["report"]["payload_bits"] <= 5
    assert (tmp_path / "out/model.safetensors").read_bytes() == (tiny.out / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--device", "gpu9"], "device: gpu9 is unknown"),
        (["--salience", "/no/salience"], "/no/salience"),
        (["--salience", "/tmp"], "/tmp: is a directory; give the salience in it"),
        (["--calibration", "/no/text.txt"], "/no/text.txt"),
    ],
)
def test_bad_input_leaves_nothing(tiny: Tiny, tmp_path: Path, capsys, more: list[str], message: str):
    assert quantize(tiny, tmp_path / "out", "--quiet", *more) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_is_not_empty_needs_overwrite(tiny: Tiny, tmp_path: Path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "precious").write_text("data")
    assert quantize(tiny, out, "--quiet") == 2
    assert "--overwrite" in capsys.readouterr().err
    assert [file.name for file in out.iterdir()] == ["precious"]
    assert quantize(tiny, out, "--quiet", "--overwrite") == 0
    assert (out / "config.json").exists()


@pytest.mark.parametrize("inside", ["", "model"])
def test_the_model_itself_is_never_replaced(tiny: Tiny, tmp_path: Path, capsys, inside: str):
    model = tmp_path / "out" / inside
    shutil.copytree(tiny.model, model)
    assert quantize(replace(tiny, model=model), tmp_path / "out", "--quiet", "--overwrite") == 2
    assert "the model itself is there" in capsys.readouterr().err
    assert (model / "model.safetensors").read_bytes() == (tiny.model / "model.safetensors").read_bytes()


@pytest.mark.parametrize("there", [True, False])
def test_a_link_is_followed(tiny: Tiny, tmp_path: Path, there: bool):
    place, link = tmp_path / "disk/place", tmp_path / "out"
    if there:
        place.mkdir(parents=True)
    link.symlink_to(place)
    assert quantize(tiny, link, "--quiet") == 0
    assert link.is_symlink() and (place / "config.json").is_file()
    assert {path.name for path in tmp_path.iterdir()} == {"disk", "out"}
    assert [path.name for path in place.parent.iterdir()] == ["place"]


def test_where_a_gguf_file_is_converted_is_told(tiny: Tiny, tmp_path: Path, capsys):
    file = tmp_path / "tiny.gguf"
    write_gguf(file, tie=True)
    assert quantize(replace(tiny, model=file), tmp_path / "out") == 0
    assert list(tmp_path.glob("tiny-*")) == []
    assert f"{file}: converted to {place_of(file)}, which stays for further runs\n" in capsys.readouterr().err


def test_an_output_inside_the_models_directory_is_fine(tiny: Tiny, tmp_path: Path):
    shutil.copytree(tiny.model, tmp_path / "model")
    made = replace(tiny, model=tmp_path / "model")
    assert quantize(made, tmp_path / "model/out", "--quiet") == 0


def test_an_output_that_is_a_file_is_never_replaced(tiny: Tiny, tmp_path: Path, capsys):
    (tmp_path / "out").write_text("data")
    assert quantize(tiny, tmp_path / "out", "--quiet", "--overwrite") == 2
    assert "out: is no directory" in capsys.readouterr().err
    assert (tmp_path / "out").read_text() == "data"


def test_links_that_lead_in_a_circle_are_told(tiny: Tiny, tmp_path: Path, capsys):
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    for out in (tmp_path / "a", tmp_path / "a/out"):
        assert quantize(tiny, out, "--quiet") == 2
        said = capsys.readouterr().err
        assert said.startswith(f"error: {out}") or said.startswith(f"error: {tmp_path}/")
        assert said.count("\n") == 1
    assert quantize(replace(tiny, model=tmp_path / "a"), tmp_path / "out", "--quiet") == 2
    said = f"error: {tmp_path / 'a'}: is a link to {tmp_path / 'b'}, where nothing is; mend the link\n"
    assert capsys.readouterr().err == said
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a", "b"]


def test_a_dry_run_only_tells(tiny: Tiny, tmp_path: Path, capsys):
    assert quantize(tiny, tmp_path / "out", "--dry-run") == 0
    text = capsys.readouterr().out
    assert all(word in text for word in ("time ", "memory ", "disk ", "free"))
    assert quantize(tiny, tmp_path / "out", "--dry-run", "--json") == 0
    needs = json.loads(capsys.readouterr().out)
    assert needs["checkpoint_bytes"] == pytest.approx(
        (tiny.out / "model.safetensors").stat().st_size, rel=0.02
    )
    assert not (tmp_path / "out").exists()


def interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_ctrl_c_says_how_to_go_on_and_the_same_command_does(
    tiny: Tiny, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as patch:
        patch.setattr("mixllm.rounding.walk.pack", interrupt)
        assert quantize(tiny, tmp_path / "out", "--quiet") == 130
    partial = tmp_path / ".out.partial"
    line = f"error: interrupted; run the same command again to continue from {partial}\n"
    assert capsys.readouterr().err == line
    assert [file.name for file in tmp_path.iterdir()] == [partial.name]
    assert quantize(tiny, tmp_path / "out", "--resume", "require") == 0
    note = f"{partial}: goes on where an earlier run stopped: salience measured\n"
    assert capsys.readouterr().err.startswith(note)
    assert [file.name for file in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out/model.safetensors").read_bytes() == (tiny.out / "model.safetensors").read_bytes()


def test_ctrl_c_before_anything_is_done_leaves_nothing(
    tiny: Tiny, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("mixllm.choosing.measure_salience", interrupt)
    assert quantize(tiny, tmp_path / "out", "--quiet") == 130
    assert capsys.readouterr().err == "error: interrupted\n"
    assert list(tmp_path.iterdir()) == []


def test_shard_size(tiny: Tiny, tmp_path: Path, capsys):
    assert quantize(tiny, tmp_path / "out", "--quiet", "--shard-size", "100KB") == 0
    shards = sorted((tmp_path / "out").glob("model-*.safetensors"))
    assert len(shards) > 1 and all(shard.stat().st_size < 110_000 for shard in shards)
    assert quantize(tiny, tmp_path / "out2", "--quiet", "--shard-size", "5 apples") == 2
    assert "shard size: '5 apples' is no size" in capsys.readouterr().err


def test_a_dry_run_refuses_what_the_run_would(tiny: Tiny, tmp_path: Path, capsys):
    def refused(*flags: object, out: Path | None = None) -> str:
        codes, lines = set(), set()
        given = ["quantize", tiny.model, "-o", out or tmp_path / "out", "--window", 40, "--quiet"]
        given += ["--samples", 4, "--calibration", tiny.text, *flags]
        for also in ([], ["--dry-run"]):
            codes.add(main.run([str(argument) for argument in (*given, *also)]))
            lines.add(capsys.readouterr().err)
        (line,) = lines
        assert codes == {2}
        return str(line)

    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    assert "exists and is not empty" in refused(out=tmp_path / "full")
    assert "the model itself is there" in refused(out=tiny.model)
    assert "nothing.json" in refused("--plan", tmp_path / "nothing.json")
    assert "nothing.st" in refused("--salience", tmp_path / "nothing.st")
    assert "nothing.txt: no such text file" in refused("--calibration", "nothing.txt")
    assert "text: its name is empty" in refused("--calibration", "")
    assert "nothing.raw: no such text file" in refused("--tune", "1", "--tune-text", "nothing.raw")
    assert "window: 1000 tokens, but the model reads at most 256" in refused("--window", 1000)
    plan = json.loads((tiny.out / PLAN).read_text())
    plan["modules"].popitem()
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    assert "missing, but the model has" in refused("--plan", tmp_path / "plan.json")


def test_names_that_safetensors_cannot_open_are_refused_at_once(tiny: Tiny, tmp_path: Path):
    name = b"b\xff\xe4d".decode("utf-8", "surrogateescape")
    for model, out in ((tiny.model, tmp_path / name), (tmp_path / name, tmp_path / "out")):
        with pytest.raises(MixllmError, match="the name is not UTF-8"):
            pipeline.quantize(model, out)
    assert list(tmp_path.iterdir()) == []
    shutil.copyfile(tiny.text, tmp_path / f"{name}.txt")
    given = ["--calibration", str(tmp_path / f"{name}.txt"), "--samples", "4", "--window", "40", "--quiet"]
    assert main.run(["quantize", str(tiny.model), "-o", str(tmp_path / "out"), *given]) == 0
    assert name in json.loads((tmp_path / "out/mixllm/summary.json").read_text())["config"]["calibration"]


def test_a_dry_run_with_a_plan_tells_the_plans_size(tiny: Tiny, tmp_path: Path, capsys):
    assert quantize(tiny, tmp_path / "eight", "--quiet", "--bits", "8") == 0
    capsys.readouterr()
    flags = ["--plan", tmp_path / "eight" / PLAN, "--window", "40", "--dry-run", "--json"]
    assert main.run([str(word) for word in ("quantize", tiny.model, "-o", tmp_path / "out", *flags)]) == 0
    told = json.loads(capsys.readouterr().out)["checkpoint_bytes"]
    assert told == pytest.approx((tmp_path / "eight/model.safetensors").stat().st_size, rel=0.02)
