"""Every lie that the files of a checkpoint can tell."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tests.format.layers import write_quantized

from mixllm.config import PROFILES
from mixllm.errors import MixllmError
from mixllm.format.validate import validate
from mixllm.loading import load

Tensors = dict[str, torch.Tensor]
Q = "model.layers.1.self_attn.q_proj"
DOWN = "model.layers.1.mlp.down_proj"


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("checkpoints")
    paths = {name: write_quantized(root / name, "qwen2", format) for name, format in PROFILES.items()}
    paths["widths"] = write_quantized(root / "widths", "qwen2", share8=None)
    return {**paths, "sharded": write_quantized(root / "sharded", "qwen2", shard_bytes=40_000)}


@pytest.fixture
def copy(checkpoints: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    return lambda name: Path(shutil.copytree(checkpoints[name], tmp_path / name))


def refused(path: Path, *words: str) -> None:
    with pytest.raises(MixllmError) as error:
        validate(path)
    message = str(error.value)
    assert all(word in message for word in words), message
    assert "\n" not in message


def edit(path: Path, change: Callable[[Tensors], None]) -> Path:
    """Rewrite the checkpoint's one file with changed tensors."""
    tensors = load_file(path / "model.safetensors")
    change(tensors)
    save_file(
        {k: v.contiguous() for k, v in tensors.items()}, path / "model.safetensors", metadata={"format": "pt"}
    )
    return path


def put(key: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Tensors], None]:
    return lambda tensors: tensors.update({key: change(tensors[key])})


def drop(tensors: Tensors, key: str) -> None:
    del tensors[key]


def first(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    """Overwrite the first element."""
    return lambda tensor: torch.cat(
        (torch.tensor([value], dtype=tensor.dtype), tensor.flatten()[1:])
    ).reshape(tensor.shape)


def test_whole_checkpoints_pass(checkpoints: dict[str, Path]) -> None:
    for path in checkpoints.values():
        validate(path)


@pytest.mark.parametrize(
    ("key", "change", "reason"),
    [
        ("rows", lambda t: t.long(), "dtype is I64, not int32"),
        ("codes4", lambda t: t.to(torch.int8), "dtype is I8, not uint8"),
        ("scales4", lambda t: t.to(torch.bfloat16), "dtype is BF16"),
        ("bias", lambda t: t.to(torch.int32), "dtype is I32"),
        ("codes4", lambda t: t[:-1], "shape"),
        ("codes8", lambda t: t[:, :-1], "shape"),
        ("scales8", lambda t: torch.cat((t, t)), "shape"),
        ("zeros4", lambda t: t.flatten(), "shape"),
        ("bias", lambda t: t[:-1], "shape"),
        ("weight", lambda t: torch.zeros(3, dtype=torch.uint8), "shape is [3], not [0]"),
        ("rows", lambda t: torch.cat((t[1:2], t[1:])), "a row number twice"),
        ("rows", first(-1), "outside 0 to"),
        ("rows", first(1e6), "outside 0 to"),
        ("rows", lambda t: t.flip(0), "ascending order"),
        ("scales4", first(0.0), "0 or negative"),
        ("scales4", first(-1.0), "0 or negative"),
        ("scales8", first(float("nan")), "NaN"),
        ("scales8", first(float("inf")), "not finite"),
        ("codes8", first(-128), "-128"),
    ],
)
@pytest.mark.parametrize("profile", PROFILES)
def test_each_lie_of_a_tensor_is_named(
    copy: Callable[[str], Path],
    profile: str,
    key: str,
    change: Callable[[torch.Tensor], torch.Tensor],
    reason: str,
) -> None:
    path = edit(copy(profile), put(f"{Q}.{key}", change))
    refused(path, f"tensor {Q}.{key}: ", reason, "model.safetensors")


def test_a_scale_that_overflows_with_its_multiplier_is_named(copy: Callable[[str], Path]) -> None:
    refused(edit(copy("fast"), put(f"{Q}.scales4", first(1e38))), "not finite")


def test_a_product_outside_int8_is_named(copy: Callable[[str], Path]) -> None:
    def overflow(tensors: Tensors) -> None:
        tensors[f"{Q}.multipliers4"][2] = 0x0F
        tensors[f"{Q}.zeros4"][2] = 0
        tensors[f"{Q}.codes4"][2] = 0x88

    refused(edit(copy("fast"), overflow), f"{Q}.multipliers4", "row 2", "outside -128 to 127")


def test_a_product_that_8_bit_rows_cannot_hold_is_named(copy: Callable[[str], Path]) -> None:
    def overflow(tensors: Tensors) -> None:
        tensors[f"{Q}.multipliers6"][1] = 0x03
        tensors[f"{Q}.zeros6"][1] = 0x3F
        tensors[f"{Q}.codes6"][1] = 0

    refused(edit(copy("widths"), overflow), f"{Q}.multipliers6", "row 1", "outside -127 to 127")


def test_padding_that_is_not_zero_is_named(copy: Callable[[str], Path]) -> None:
    refused(edit(copy("fast"), put(f"{Q}.zeros4", lambda t: t | 0xF0)), f"{Q}.zeros4", "unused bits")
    refused(edit(copy("widths"), put(f"{Q}.zeros3", lambda t: t | 0xF8)), f"{Q}.zeros3", "unused bits")


@pytest.mark.parametrize("key", ["rows", "codes4", "zeros4", "scales4", "codes8", "scales8", "weight"])
def test_a_missing_tensor_is_named(copy: Callable[[str], Path], key: str) -> None:
    refused(edit(copy("paper"), lambda t: drop(t, f"{DOWN}.{key}")), f"{DOWN}.{key}", "missing")


@pytest.mark.parametrize("key", ["multipliers4", "weight_scale"])
def test_a_tensor_too_many_is_named(copy: Callable[[str], Path], key: str) -> None:
    path = edit(copy("paper"), lambda t: t.update({f"{Q}.{key}": torch.zeros(2)}))
    refused(path, f"{Q}.{key}", "has none")


def test_counts_that_config_and_tensors_disagree_on_are_named(copy: Callable[[str], Path]) -> None:
    path = copy("fast")
    config = json.loads((path / "config.json").read_text())
    rows = config["quantization_config"]["modules"][Q]["rows"]
    rows["4"], rows["8"] = rows["4"] - 1, rows["8"] + 1
    (path / "config.json").write_text(json.dumps(config))
    refused(path, Q, "shape")


def test_a_truncated_file_is_named(copy: Callable[[str], Path]) -> None:
    path = copy("fast")
    content = (path / "model.safetensors").read_bytes()
    for length in (0, 7, 100, len(content) - 1):
        (path / "model.safetensors").write_bytes(content[:length])
        refused(path, "model.safetensors", "not a whole safetensors file")
    (path / "model.safetensors").write_bytes(content + b"x")
    refused(path, "not a whole safetensors file")


def test_a_file_that_may_not_be_read_is_not_called_damaged(
    copy: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = copy("fast")
    monkeypatch.setattr("os.access", lambda file, mode: Path(file).name != "model.safetensors")
    refused(path, "model.safetensors: not yours to read")


def test_a_missing_file_is_named(copy: Callable[[str], Path]) -> None:
    path = copy("fast")
    (path / "model.safetensors").unlink()
    refused(path, "not complete")
    path = copy("sharded")
    second = sorted(path.glob("model-*.safetensors"))[1]
    second.unlink()
    refused(path, second.name, "missing")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda m: "x", "no weight_map in it"),
        (lambda m: {**m, "lm_head.weight": 3}, "no weight_map in it"),
        (lambda m: {**m, "lm_head.weight": "../model.safetensors"}, "not the name of a file"),
        (lambda m: {**m, "nowhere.weight": m["lm_head.weight"]}, "nowhere.weight"),
        (lambda m: {k: v for k, v in m.items() if k != f"{Q}.rows"}, f"{Q}.rows"),
    ],
)
def test_each_lie_of_an_index_is_named(
    copy: Callable[[str], Path], change: Callable[[dict[str, str]], object], reason: str
) -> None:
    path = copy("sharded")
    file = path / "model.safetensors.index.json"
    file.write_text(json.dumps({"weight_map": change(json.loads(file.read_text())["weight_map"])}))
    refused(path, "index.json", reason)


def test_a_tensor_held_twice_is_named(copy: Callable[[str], Path]) -> None:
    path = copy("sharded")
    first_file, second_file = sorted(path.glob("model-*.safetensors"))[:2]
    name, tensor = next(iter(load_file(first_file).items()))
    save_file({**load_file(second_file), name: tensor}, second_file, metadata={"format": "pt"})
    refused(path, name, "holds it too")


def test_a_file_and_an_index_together_are_refused(copy: Callable[[str], Path]) -> None:
    path = copy("sharded")
    save_file({"x": torch.zeros(1)}, path / "model.safetensors")
    refused(path, "holds both")


@given(st.data())
def test_flipped_header_bytes_are_refused_or_harmless(
    checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "checkpoint"
    shutil.copytree(checkpoints["fast"], path)
    content = bytearray((path / "model.safetensors").read_bytes())
    header = 8 + int.from_bytes(content[:8], "little")
    flips = st.tuples(st.one_of(st.integers(0, 7), st.integers(8, header - 1)), st.integers(1, 255))
    for place, bits in data.draw(st.lists(flips, min_size=1, max_size=3)):
        content[place] ^= bits
    (path / "model.safetensors").write_bytes(content)
    try:
        load(path)
    except MixllmError as error:
        assert "\n" not in str(error)
    finally:
        shutil.rmtree(path)
