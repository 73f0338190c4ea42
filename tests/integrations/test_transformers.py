"""from_pretrained, save_pretrained and generate, in whatever transformers is installed."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.format.layers import packed_layers, write_quantized
from tests.models import ARCHITECTURES, VOCAB, tiny_tokenizer
from tests.shapes import FORMAT_IDS, FORMATS
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.generation.configuration_utils import CompileConfig

from mixllm.config import PROFILES, Format, QuantConfig
from mixllm.errors import MixllmError
from mixllm.integrations import register
from mixllm.nn import MixLinear
from mixllm.pipeline import quantize
from mixllm.source import open_source

register()

LOAD = "m = transformers.AutoModelForCausalLM.from_pretrained({!r})"
IDS = torch.arange(3, 23).reshape(2, 10)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_quantized(tmp_path_factory.mktemp("llama"), "llama")


def run(program: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)


def mix_linears(model: nn.Module) -> dict[str, MixLinear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, MixLinear)}


def quantized_by_hand(float_model: Path, format: Format) -> nn.Module:
    """The float model with each layer replaced, in memory."""
    model = AutoModelForCausalLM.from_pretrained(float_model)
    for name, weight in packed_layers(open_source(str(float_model)), format):
        model.set_submodule(name, MixLinear.from_weight(weight, format, model.get_submodule(name).bias))
    return model


def same_files(one: Path, other: Path) -> None:
    names = sorted(file.name for file in one.glob("*.safetensors"))
    assert names == sorted(file.name for file in other.glob("*.safetensors"))
    for name in names:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_each_architecture_loads_and_saves_the_same(tmp_path: Path, architecture: str) -> None:
    path = write_quantized(tmp_path, architecture)
    model = AutoModelForCausalLM.from_pretrained(path)
    with torch.no_grad():
        expected = quantized_by_hand(tmp_path / "float", PROFILES["fast"])(IDS).logits
        assert torch.equal(model(IDS).logits, expected)
    model.save_pretrained(tmp_path / "again")
    same_files(path, tmp_path / "again")
    config, again = (json.loads((p / "config.json").read_text()) for p in (path, tmp_path / "again"))
    assert again["quantization_config"] == config["quantization_config"]


@pytest.mark.parametrize("format", FORMATS, ids=FORMAT_IDS)
def test_each_format_loads(tmp_path: Path, format: Format) -> None:
    path = write_quantized(tmp_path, "qwen2", format)
    model = AutoModelForCausalLM.from_pretrained(path)
    with torch.no_grad():
        assert torch.equal(model(IDS).logits, quantized_by_hand(tmp_path / "float", format)(IDS).logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("profile", PROFILES)
def test_the_dtype_asked_for_leaves_stored_tensors_alone(
    tmp_path: Path, profile: str, dtype: torch.dtype
) -> None:
    path = write_quantized(tmp_path, "qwen2", PROFILES[profile])
    model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
    held = load_file(path / "model.safetensors")
    for name, layer in mix_linears(model).items():
        for key, tensor in layer.stored.tensors().items():
            stored = held[f"{name}.{key}"]
            assert tensor.dtype == stored.dtype and torch.equal(tensor, stored), (name, key)
    assert {p.dtype for p in model.parameters()} == {dtype}
    with torch.no_grad():
        logits = model(IDS).logits
    assert logits.dtype == dtype and bool(logits.isfinite().all())


@pytest.mark.parametrize("share8", [0.0, 1.0])
def test_layers_of_one_width_save_the_same_in_shards(tmp_path: Path, share8: float) -> None:
    path = write_quantized(tmp_path, "llama", share8=share8, shard_bytes=40_000)
    model = AutoModelForCausalLM.from_pretrained(path)
    model.save_pretrained(tmp_path / "again", max_shard_size=40_000)
    same_files(path, tmp_path / "again")
    assert len(list(path.glob("*.safetensors"))) > 3


def test_a_static_cache_is_compiled_whole(checkpoint: Path) -> None:
    # generate() itself compiles on GPUs only, and where the quantizer allows it (tests/gpu/test_generate.py).
    config = CompileConfig(fullgraph=True, backend="aot_eager", mode="default")
    config._compile_all_devices = True
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    usual = model.generate(IDS, do_sample=False, eos_token_id=None)
    static = model.generate(
        IDS, do_sample=False, eos_token_id=None, cache_implementation="static", compile_config=config
    )
    assert torch.equal(static, usual) and model._compiled_call is not None


def test_training_is_refused_and_no_grad_may_be_left_out(checkpoint: Path) -> None:
    """Gradients ended silently at the first quantized layer, and torch.compile for want of a formula."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    with pytest.raises(RuntimeError, match="does not require grad"):
        model(IDS, labels=IDS).loss.backward()
    torch.testing.assert_close(torch.compile(model, backend="aot_eager")(IDS).logits, model(IDS).logits)


def test_tied_embeddings_stay_tied(tmp_path: Path) -> None:
    path = write_quantized(tmp_path, "llama", tie=True, dtype=torch.bfloat16)
    model = AutoModelForCausalLM.from_pretrained(path)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.dtype == torch.bfloat16
    model.save_pretrained(tmp_path / "again")
    same_files(path, tmp_path / "again")


def test_a_move_keeps_scales_and_results(checkpoint: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(checkpoint, device_map={"": "cpu"})
    before = {name: layer.stored.scales4.clone() for name, layer in mix_linears(model).items()}
    with torch.no_grad():
        first = model(IDS).logits
        model.to(torch.bfloat16)
        for name, layer in mix_linears(model).items():
            assert layer.stored.scales4.dtype == torch.float32
            assert torch.equal(layer.stored.scales4, before[name])
        assert model(IDS).logits.dtype == torch.bfloat16
        embeddings = AutoModelForCausalLM.from_pretrained(checkpoint, device_map="auto")
        assert torch.equal(embeddings(IDS).logits, first)


def test_it_generates_with_what_came_with_the_model(checkpoint: Path) -> None:
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(checkpoint),
        AutoTokenizer.from_pretrained(checkpoint),
    )
    assert (
        model.generation_config.max_new_tokens
        == GenerationConfig.from_pretrained(checkpoint).max_new_tokens
        == 7
    )
    chat = [{"role": "user", "content": "the inn"}]
    prompt = tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    text = model.generate(**prompt, do_sample=False, eos_token_id=None)
    assert text.shape[1] == prompt["input_ids"].shape[1] + 7
    cached = model.generate(**prompt, do_sample=False, eos_token_id=None, use_cache=False)
    assert torch.equal(text, cached)


def test_only_a_causal_model_takes_it(checkpoint: Path) -> None:
    with pytest.raises(MixllmError, match="AutoModelForCausalLM"):
        AutoModel.from_pretrained(checkpoint)


def test_a_config_of_another_size_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(checkpoint, tmp_path / "other"))
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "intermediate_size": 8}))
    with pytest.raises(MixllmError, match=r"down_proj.*8 to 72 features, the checkpoint 136 to 72"):
        AutoModelForCausalLM.from_pretrained(path)


@pytest.mark.parametrize(
    ("change", "reason"), [(lambda t: t.T.contiguous(), "shape"), (lambda t: t.view(torch.int32), "dtype")]
)
def test_other_tensors_must_fit_the_model(
    checkpoint: Path, tmp_path: Path, change: Callable[[torch.Tensor], torch.Tensor], reason: str
) -> None:
    path = Path(shutil.copytree(checkpoint, tmp_path / "other"))
    tensors = load_file(path / "model.safetensors")
    tensors["lm_head.weight"] = change(tensors["lm_head.weight"])
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(MixllmError, match=f"tensor lm_head.weight: its {reason}"):
        AutoModelForCausalLM.from_pretrained(path)


@pytest.mark.parametrize(
    ("architecture", "layers", "sizes"),
    [
        ("gpt_bigcode", 8, {"n_embd": 72, "n_inner": 136, "n_layer": 2, "n_head": 6, "n_positions": 64}),
        (
            "mamba2",  # which does so where it has tensors of its own
            4,
            {
                "hidden_size": 72, "num_hidden_layers": 2, "num_heads": 6, "head_dim": 24, "state_size": 16,
                "n_groups": 2,
            },
        ),
        (
            "gpt_neo",  # whose masks are made in the same place
            12,
            {
                "hidden_size": 72, "num_layers": 2, "num_heads": 6, "max_position_embeddings": 64,
                "attention_types": [[["global", "local"], 1]],
            },
        ),
    ],
)  # fmt: skip
def test_models_whose_code_gives_what_is_in_them_first_values(
    tmp_path: Path, architecture: str, layers: int, sizes: dict[str, Any]
) -> None:
    config = AutoConfig.for_model(architecture, vocab_size=VOCAB, **sizes)
    model = AutoModelForCausalLM.from_config(config).eval()
    model.save_pretrained(tmp_path / "float")
    tiny_tokenizer().save_pretrained(tmp_path / "float")
    (tmp_path / "text.txt").write_text("The thin man in the inn. " * 20)
    made = QuantConfig(calibration=str(tmp_path / "text.txt"), samples=2, window=20, bits=8)
    quantize(str(tmp_path / "float"), tmp_path / "out", made)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert len(mix_linears(loaded)) == layers
    for name, buffer in model.named_buffers():
        assert torch.equal(loaded.get_buffer(name), buffer), name
    ids = torch.arange(9, 40)[None]
    with torch.no_grad():
        wanted, found = model(ids).logits, loaded(ids).logits
    assert float((found - wanted).norm() / wanted.norm()) < 0.05


@pytest.mark.parametrize("imports", ["import mixllm, transformers", "import transformers, mixllm"])
def test_importing_mixllm_is_enough(checkpoint: Path, imports: str) -> None:
    done = run(
        f"{imports}; {LOAD.format(str(checkpoint))}; print(type(m.model.layers[0].mlp.up_proj).__name__)"
    )
    assert done.returncode == 0 and done.stdout.strip() == "MixLinear", done.stderr


def test_importing_mixllm_does_not_import_transformers() -> None:
    done = run("import mixllm, sys; print({'torch', 'transformers'} & set(sys.modules))")
    assert done.stdout.strip() == "set()", done.stderr
