import inspect
from typing import Any

import pytest

from mixllm.cli import main
from mixllm.cli.options import _HELP, config, config_flags
from mixllm.cli.quantize import quantize
from mixllm.config import PROFILES, Format, QuantConfig
from mixllm.errors import MixllmError

FIXED = {"format", "version", "group_size", "rotation_block"}
FIELDS = {*QuantConfig.model_fields, *Format.model_fields} - FIXED


def test_every_field_is_a_flag_with_one_spelling_and_a_help(capsys):
    main.run(["quantize", "--help"])
    out = capsys.readouterr().out
    for name in FIELDS:
        assert f"--{name.replace('_', '-')} " in out
    assert set(_HELP) == FIELDS
    assert "[default: 4.4]" in " ".join(out.split()) and "[default: on]" in " ".join(out.split())


def test_flags_left_out_are_the_defaults():
    assert config({}) == QuantConfig()
    assert config({"profile": "paper"}) == QuantConfig(format=PROFILES["paper"])


def test_rounding_to_nearest():
    assert config({"rounding": "rtn"}) == QuantConfig(rounding="rtn")


def test_a_flag_overrides_the_profile():
    made = config({"profile": "paper", "activation_group": "token", "rotation": "hadamard"})
    assert made.format == Format(weight_scale="group", rotation="hadamard", activation_group="token")
    assert config({"activation_group": "256"}).format.activation_group == 256


def test_all_values_arrive(monkeypatch):
    seen: dict[str, Any] = {}

    def record(model: str, out: Any, chosen: QuantConfig, **_: Any) -> Any:
        seen["config"] = chosen
        raise MixllmError("stop here")

    monkeypatch.setattr("mixllm.pipeline.quantize", record)
    flags = (
        "--profile paper --widths 3,5,8 --bits 5.5 --scope random --score taylor --error rtn --no-clip "
        "--no-order --sweeps 2 --clip-by gptq --damping 0.02 --tune 3 --tune-codes --tune-text more.jsonl "
        "--tune-samples 7 --calibration text.txt --samples 3 --window 64 --seed 9 --weight-scale row "
        "--rotation hadamard --activation-group 512"
    )
    assert main.run(["quantize", "model", "-o", "out", *flags.split()]) == 2
    assert seen["config"] == QuantConfig(
        format=Format(weight_scale="row", rotation="hadamard", activation_group=512),
        widths=(3, 5, 8),
        bits=5.5,
        scope="random",
        score="taylor",
        error="rtn",
        clip=False,
        clip_by="gptq",
        order=False,
        sweeps=2,
        damping=0.02,
        tune=3,
        tune_codes=True,
        tune_text="more.jsonl",
        tune_samples=7,
        calibration="text.txt",
        samples=3,
        window=64,
        seed=9,
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"bits": 3.0}, "--bits: must be 4 to 8, not 3; give widths that reach further"),
        ({"widths": "3,8", "bits": 2.9}, "--bits: must be 3 to 8, not 2.9$"),
        ({"bits": float("nan")}, "--bits: must be 4 to 8, not nan$"),
        ({"bits": 5.0, "channels": 10.0}, "--bits, --channels: give bits or channels, not both"),
        ({"widths": "4"}, "--widths: give two or more of 3, 4, 5, 6, 8"),
        ({"widths": "8,4"}, "--widths: .*the narrowest first"),
        ({"widths": "4,7"}, "--widths: give"),
        ({"widths": "4,x"}, "--widths"),
        ({"channels": 101.0}, "--channels: "),
        ({"samples": 0}, "--samples: "),
        ({"damping": 0.0}, "--damping: "),
        ({"rounding": "rtn", "sweeps": 2}, "--sweeps: follows GPTQ"),
        ({"rounding": "rtn", "tune": 1}, "--tune: follows GPTQ"),
        ({"tune_text": "more.jsonl"}, "--tune-text: only tuning reads it"),
        ({"tune": 0, "tune_samples": 9}, "--tune-samples: only tuning reads it"),
    ],
)
def test_bad_values_name_their_option(given, message):
    with pytest.raises(MixllmError, match=message):
        config(given)


def test_a_command_may_take_some_of_the_flags():
    @config_flags("bits", "seed")
    def command(path: str, **given: Any) -> None:
        raise AssertionError((path, given))

    assert list(inspect.signature(command).parameters) == ["path", "bits", "seed"]
    with pytest.raises(AssertionError) as caught:
        command(path="p", bits=None, seed=3)
    assert caught.value.args[0] == ("p", {"seed": 3})
    assert set(inspect.signature(quantize).parameters) > FIELDS
