"""Opening a model: what is there, what a broken one says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import mixllm.source.hub
from mixllm.source import Source, open_source
from mixllm.source.converted import converted
from tests.gguf_file import write_gguf
from tests.models import CHAT_TEMPLATE, write_tiny
from tests.saying import says

TEXT = "the 1234 cats\n\n56 on  a thing é"


def refused(kind: type[Exception]) -> Exception:
    """As the hub's library raises it, without the response that it takes."""
    return kind.__new__(kind, "a paragraph " * 40)


def damage(path: Path, name: str, change: Any) -> None:
    file = path / "model.safetensors"
    tensors = load_file(file)
    tensors[name] = change(tensors[name])
    save_file(tensors, file, metadata={"format": "pt"})


@pytest.mark.parametrize("shard_size", ["5GB", "60KB"])
def test_tensors_are_those_of_the_model(tmp_path: Path, shard_size: str) -> None:
    model = write_tiny(tmp_path, "qwen2", dtype=torch.bfloat16, shard_size=shard_size)
    source = open_source(str(tmp_path))
    assert (tmp_path / "model.safetensors").exists() == (shard_size == "5GB")
    assert set(source.names) == set(model.state_dict())
    for name, tensor in model.state_dict().items():
        assert torch.equal(source.tensor(name), tensor)
        assert source.header(name) == ("BF16", tuple(tensor.shape))
        assert source.bytes(name) == 2 * tensor.numel()
    assert source.config.model_type == "qwen2"
    assert "model.norm.weight" in source and "model.nothing" not in source


def test_names_saved_from_the_base_model_get_its_prefix(tmp_path: Path) -> None:
    model = write_tiny(tmp_path, "llama", tie=True)
    model.model.save_pretrained(tmp_path)
    assert "norm.weight" in load_file(tmp_path / "model.safetensors")
    source = Source(tmp_path)
    assert torch.equal(source.tensor("model.norm.weight"), model.model.norm.weight)
    assert set(source.names) == {name for name, _ in model.named_parameters()}


def test_missing_tensor(tmp_path: Path) -> None:
    write_tiny(tmp_path)
    with says("tensor model.nothing.weight is missing"):
        Source(tmp_path).tensor("model.nothing.weight")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_values_that_are_not_finite(tmp_path: Path, value: float, dtype: torch.dtype) -> None:
    write_tiny(tmp_path, dtype=dtype)

    def spoil(tensor: torch.Tensor) -> torch.Tensor:
        tensor[3, 5] = value
        return tensor

    damage(tmp_path, "model.layers.1.mlp.up_proj.weight", spoil)
    source = Source(tmp_path)
    source.tensor("model.layers.0.mlp.up_proj.weight")
    with says("tensor model.layers.1.mlp.up_proj.weight holds NaN"):
        source.tensor("model.layers.1.mlp.up_proj.weight")


def test_an_adapter_is_named(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with says("is a PEFT adapter; merge it into its model"):
        open_source(str(tmp_path))


def test_directory_without_a_model(tmp_path: Path) -> None:
    with says("no config.json"):
        open_source(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "no such type"}')
    with says("config.json: .*no such type"):
        open_source(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "own", "auto_map": {"AutoConfig": "own.Config"}}')
    with says("config.json: own needs code of its own, which mixllm does not run"):
        open_source(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "llama", "hidden_size": "big"}')
    with says("config.json: .*hidden_size"):
        open_source(str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with says("config.json: not valid JSON"):
        open_source(str(tmp_path))


def test_weights_in_another_kind_of_file(tmp_path: Path) -> None:
    write_tiny(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with says("neither model.safetensors nor"):
        Source(tmp_path)
    (tmp_path / "pytorch_model.bin").touch()
    with says("pytorch_model.bin but no model.safetensors; save"):
        Source(tmp_path)


@pytest.mark.parametrize(
    ("kind", "architecture", "message"),
    [
        ("t5", "T5ForConditionalGeneration", "encoder-decoder"),
        ("bart", "BartForCausalLM", "encoder-decoder"),
        ("bert", "BertForMaskedLM", "BertForMaskedLM is an encoder"),
        ("roberta", "RobertaModel", "RobertaModel is an encoder"),
        ("vit", "ViTModel", "no causal language model of type vit"),
    ],
)
def test_models_that_are_no_decoders(tmp_path: Path, kind: str, architecture: str, message: str) -> None:
    AutoConfig.for_model(kind, architectures=[architecture]).save_pretrained(tmp_path)
    with says(message):
        Source(tmp_path)


@pytest.mark.parametrize(
    ("said", "method"),
    [
        ({"quant_method": "gptq", "bits": 4}, r" \(gptq\)"),
        ({"quant_method": "mixllm"}, r" \(mixllm\)"),
        ({"quant_method": "fp8"}, r" \(fp8\)"),  # without blocks
        ({"bits": 4}, ""),
        ("gptq", r" \(gptq\)"),
    ],
)
def test_quantized_model(tmp_path: Path, said: Any, method: str) -> None:
    write_tiny(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = said
    (tmp_path / "config.json").write_text(json.dumps(config))
    with says(rf"config.json: the model is quantized already{method}; give the float model"):
        Source(tmp_path)


def test_paths_that_are_nothing(tmp_path: Path) -> None:
    (tmp_path / "weights.zip").touch()
    with says("MODEL: is empty"):
        open_source("")
    with says("weights.zip: is a file"):
        open_source(str(tmp_path / "weights.zip"))
    with says("no such directory, and not a model's name"):
        open_source(str(tmp_path / "nothing"))
    for name in ("nothing.gguf", "NOTHING.GGUF"):
        with says(f"{name}: no such file"):
            open_source(str(tmp_path / name))
    (tmp_path / "linked").symlink_to("nothing")
    with says("linked: is a link to nothing, where nothing is"):
        open_source(str(tmp_path / "linked"))


def test_hub_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tiny(tmp_path)
    asked = []

    def snapshot(name: str, **_: Any) -> str:
        asked.append(name)
        return str(tmp_path)

    monkeypatch.setattr(mixllm.source.hub, "snapshot_download", snapshot)
    assert open_source("someone/tiny-model").path == tmp_path
    assert asked == ["someone/tiny-model"]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ConnectionError("no route\nto the hub"), "ConnectionError: no route to the hub"),
        (LocalEntryNotFoundError("a paragraph " * 40), "it cannot be reached, and its cache has no copy"),
        (refused(RepositoryNotFoundError), "there is none of this name, or it is private"),
        (refused(GatedRepoError), "it is gated; accept its terms there and log in"),
    ],
)
def test_what_the_hub_does_not_give_is_said_in_a_few_words(
    monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str
) -> None:
    def snapshot(name: str, **_: Any) -> str:
        raise error

    monkeypatch.setattr(mixllm.source.hub, "snapshot_download", snapshot)
    with says(f"someone/tiny-model: no such directory, and the hub did not give it: {reason}") as told:
        open_source("someone/tiny-model")
    assert len(str(told.value)) < 200


@pytest.mark.parametrize("tie", [False, True])
@pytest.mark.parametrize("half", [False, True])
def test_gguf_gives_the_model_back(tmp_path: Path, tie: bool, half: bool) -> None:
    model = write_gguf(tmp_path / "tiny.gguf", tie=tie, half=half)
    source = open_source(str(tmp_path / "tiny.gguf"))
    expected = torch.float16 if half else torch.float32
    for name, tensor in model.state_dict().items():
        if not (tie and name == "lm_head.weight"):
            kept = source.tensor(name)
            assert torch.equal(kept.float(), tensor) and kept.dtype == expected
    assert source.config.tie_word_embeddings == tie
    assert getattr(source.config, "quantization_config", None) is None
    auto: Any = AutoModelForCausalLM
    loaded = auto.from_pretrained(source.path, dtype=torch.float32)
    ids = torch.arange(20, 40)[None]
    assert torch.allclose(loaded(ids).logits, model(ids).logits, atol=1e-5)
    ends = loaded.generation_config
    assert (ends.pad_token_id, ends.bos_token_id, ends.eos_token_id) == (0, 1, 2)


def test_gguf_keeps_the_tokenizer(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", tie=True)
    tokenizer: Any = AutoTokenizer.from_pretrained(converted(tmp_path / "tiny.gguf"))
    assert tokenizer.decode(tokenizer(TEXT).input_ids) == TEXT
    assert (tokenizer.pad_token, tokenizer.bos_token, tokenizer.eos_token) == ("<pad>", "<bos>", "<eos>")
    assert tokenizer("<eos>").input_ids == [2]
    assert tokenizer.chat_template == CHAT_TEMPLATE
    assert tokenizer.model_max_length == 256
    pieces = [piece for piece, _ in tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("\n\n56")]
    assert pieces == ["ĊĊ", "5", "6"]


@pytest.mark.parametrize("bos", [False, True])
def test_gguf_says_whether_texts_begin_with_bos(tmp_path: Path, bos: bool) -> None:
    write_gguf(tmp_path / "tiny.gguf", tie=True, bos=bos)
    tokenizer: Any = AutoTokenizer.from_pretrained(converted(tmp_path / "tiny.gguf"))
    assert (tokenizer("the")["input_ids"][0] == tokenizer.bos_token_id) is bos
