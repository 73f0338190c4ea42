import json
import shutil
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.format.layers import packed_layers, write_quantized
from tests.models import write_tiny

from mixllm.config import PROFILES
from mixllm.errors import MixllmError
from mixllm.format.checkpoint import read_config, validate, write_checkpoint
from mixllm.format.mixed import MixedWeight
from mixllm.format.split import natural
from mixllm.source import Source, open_source

FAST = PROFILES["fast"]


@pytest.fixture
def source(tmp_path: Path) -> Source:
    write_tiny(tmp_path / "float", "qwen2", shard_size="60KB")
    return open_source(str(tmp_path / "float"))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def tensors_of(path: Path) -> dict[str, torch.Tensor]:
    return {k: v for file in path.glob("*.safetensors") for k, v in load_file(file).items()}


@pytest.mark.parametrize("share8", [0.3, None])
@pytest.mark.parametrize("profile", PROFILES)
def test_a_checkpoint_holds_what_it_was_given(
    source: Source, out: Path, profile: str, share8: float | None
) -> None:
    format = PROFILES[profile]
    layers = dict(packed_layers(source, format, share8))
    write_checkpoint(out, source, format, layers.items())
    validate(out)
    held = tensors_of(out)
    for name, weight in layers.items():
        for key, tensor in weight.tensors().items():
            assert torch.equal(held.pop(f"{name}.{key}"), tensor)
        assert held.pop(f"{name}.weight").shape == (0,)
    assert held.keys() == {name for name in source.names if name.removesuffix(".weight") not in layers}
    assert all(torch.equal(tensor, source.tensor(name)) for name, tensor in held.items())
    read_format, modules = read_config(out)
    assert read_format == format and modules.keys() == layers.keys()
    assert all(sum(module.rows.values()) == module.out_features for module in modules.values())


def test_the_files_that_came_with_the_model_are_there(source: Source, out: Path) -> None:
    extra = {
        "LICENSE": b"l",
        "README.md": b"r",
        "old.bin": b"w",
        "additional_chat_templates/tool.jinja": b"t",
    }
    (source.path / "additional_chat_templates").mkdir()
    for name, content in extra.items():
        (source.path / name).write_bytes(content)
    write_checkpoint(out, source, FAST, packed_layers(source, FAST))
    same = ["generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"]
    for name in (*same, "LICENSE", "additional_chat_templates/tool.jinja"):
        assert (out / name).read_bytes() == (source.path / name).read_bytes()
    here = {str(file.relative_to(out)) for file in out.rglob("*") if file.is_file()}
    assert here == {
        *same,
        "LICENSE",
        "additional_chat_templates/tool.jinja",
        "config.json",
        "model.safetensors",
    }
    config, before = (json.loads((path / "config.json").read_text()) for path in (out, source.path))
    assert {key: value for key, value in config.items() if key != "quantization_config"} == before


def test_shards_have_an_index_and_the_chosen_size(source: Source, out: Path) -> None:
    write_checkpoint(out, source, FAST, packed_layers(source, FAST), shard_bytes=40_000)
    validate(out)
    shards = sorted(out.glob("model-*.safetensors"))
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert len(shards) > 3 and shards[0].name == f"model-00001-of-{len(shards):05d}.safetensors"
    for shard in shards:
        held = load_file(shard)
        assert len(held) == 1 or sum(tensor.nbytes for tensor in held.values()) <= 40_000
        assert {name for name, file in index["weight_map"].items() if file == shard.name} == held.keys()
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors_of(out).values())


def test_order_of_arrival_does_not_matter(source: Source, out: Path, tmp_path: Path) -> None:
    layers = list(packed_layers(source, FAST))
    write_checkpoint(out, source, FAST, layers)
    (tmp_path / "other").mkdir()
    write_checkpoint(tmp_path / "other", source, FAST, layers[::-1])
    assert (tmp_path / "other" / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()


def test_one_layer_is_in_memory_at_a_time(source: Source, out: Path) -> None:
    last: list[weakref.ref[MixedWeight]] = []

    def lazily() -> Iterator[tuple[str, MixedWeight]]:
        for name, weight in packed_layers(source, FAST):
            # The writer's loop variable may still hold the layer before.
            assert len([ref for ref in last if ref() is not None]) <= 1
            last.append(weakref.ref(weight))
            yield name, weight
            del weight

    write_checkpoint(out, source, FAST, lazily())


def test_an_interrupted_checkpoint_never_looks_finished(source: Source, out: Path) -> None:
    def interrupted() -> Iterator[tuple[str, MixedWeight]]:
        yield next(packed_layers(source, FAST))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(out, source, FAST, interrupted())
    assert list(out.iterdir()) == []
    with pytest.raises(MixllmError, match="not a finished checkpoint"):
        validate(out)


def test_a_layer_that_the_model_lacks_is_refused(source: Source, out: Path) -> None:
    weight = next(packed_layers(source, FAST))[1]
    with pytest.raises(MixllmError, match=r"no tensor model\.nowhere\.weight"):
        write_checkpoint(out, source, FAST, [("model.nowhere", weight)])


def test_a_config_without_dtype_gets_the_weights(source: Source, out: Path) -> None:
    file = source.path / "config.json"
    file.write_text(json.dumps({k: v for k, v in json.loads(file.read_text()).items() if k != "dtype"}))
    write_checkpoint(out, source, FAST, packed_layers(source, FAST))
    assert json.loads((out / "config.json").read_text())["dtype"] == "float32"


def test_file_size_is_the_plain_count_of_bits(tmp_path: Path) -> None:
    path = write_quantized(tmp_path, "llama")
    _, modules = read_config(path)
    groups = {name: -(-module.in_features // 128) for name, module in modules.items()}
    expected = sum(
        module.rows[4] * (-(-module.in_features // 2) + 2 * -(-groups[name] // 2) + 4)
        + module.rows[8] * (module.in_features + 4)
        + module.out_features * 4
        for name, module in modules.items()
    )
    held = tensors_of(path)
    assert expected == sum(t.nbytes for name, t in held.items() if name.rpartition(".")[0] in modules)
    shutil.rmtree(path)


def test_names_sort_by_their_numbers() -> None:
    names = ["b.10.a", "b.2.a", "b.2.fc10", "b.2.fc2", "a", "b.1"]
    assert sorted(names, key=natural) == ["a", "b.1", "b.2.a", "b.2.fc2", "b.2.fc10", "b.10.a"]
