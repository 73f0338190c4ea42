"""SGLang's own linear layers with a mixed checkpoint's tensors, on a CPU, at one rank and as each of two.

Nobody starts a server here: ranks are told their number and their results joined by the test.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.format.layers import write_quantized
from torch import Tensor

import mixllm
from mixllm.config import PROFILES
from mixllm.errors import MixllmError
from mixllm.format.config import QUANT_METHOD

pytestmark = pytest.mark.sglang

# Two ranks have whole groups of every row-parallel layer's inputs.
SIZES = {"hidden_size": 200, "intermediate_size": 512, "head_dim": 32, "num_attention_heads": 4}
BLOCK = "model.layers.0."
QKV = {"self_attn.q_proj": "q", "self_attn.k_proj": "k", "self_attn.v_proj": "v"}
GATE_UP = {"mlp.gate_proj": 0, "mlp.up_proj": 1}
DOWN = {"mlp.down_proj": None}


@pytest.fixture(params=["fast", "paper"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return write_quantized(tmp_path, "llama", PROFILES[request.param], **SIZES)


@pytest.fixture(autouse=True)
def not_dummy(monkeypatch: pytest.MonkeyPatch) -> None:
    from sglang.srt.plugins import load_plugins

    load_plugins()  # finds the plugin by its entry point
    server = SimpleNamespace(load_format="auto")
    monkeypatch.setattr("mixllm.integrations.sglang.get_server_args", lambda: server)


def config_of(path: Path) -> Any:
    from sglang.srt.layers.quantization import get_quantization_config
    from transformers import AutoConfig

    hf = AutoConfig.from_pretrained(path)
    own = hf.quantization_config
    fields = own if isinstance(own, dict) else own.to_dict()
    added = {"packed_modules_mapping": {}, "hf_config": hf}
    return get_quantization_config(QUANT_METHOD).from_config({**fields, **added}), hf


def loaded(layer: Any, parts: dict[str, Any], tensors: dict[str, Tensor]) -> Any:
    """The layer with the tensors of its parts, given as SGLang's models give them."""
    parameters = dict(layer.named_parameters())
    for name, shard in parts.items():
        for key, tensor in tensors.items():
            if key.startswith(f"{BLOCK}{name}."):
                parameter = parameters[key.rpartition(".")[2]]
                parameter.weight_loader(parameter, tensor, *(() if shard is None else (shard,)))
    layer.quant_method.process_weights_after_loading(layer)
    return layer


def layers(path: Path, ranks: int, rank: int) -> list[Any]:
    from sglang.srt.layers.linear import MergedColumnParallelLinear, QKVParallelLinear, RowParallelLinear
    from sglang.srt.runtime_context import get_parallel

    config, hf = config_of(path)
    hidden, inner = hf.hidden_size, hf.intermediate_size
    heads = hf.head_dim, hf.num_attention_heads, hf.num_key_value_heads
    more: dict[str, Any] = {"bias": False, "quant_config": config, "params_dtype": torch.float32}
    tensors = load_file(path / "model.safetensors")
    with get_parallel().override(tp_size=ranks, tp_rank=rank):
        qkv = QKVParallelLinear(hidden, *heads, prefix=f"{BLOCK}self_attn.qkv_proj", **more)
        both = MergedColumnParallelLinear(hidden, [inner] * 2, prefix=f"{BLOCK}mlp.gate_up_proj", **more)
        down = RowParallelLinear(inner, hidden, prefix=f"{BLOCK}mlp.down_proj", **more)
        made = ((qkv, QKV), (both, GATE_UP), (down, DOWN))
        return [loaded(layer, parts, tensors) for layer, parts in made]


@pytest.mark.parametrize("ranks", [1, 2])
def test_layers_compute_what_transformers_does(path: Path, ranks: int) -> None:
    model = mixllm.load(path)
    x, z = torch.randn(5, SIZES["hidden_size"]), torch.randn(5, SIZES["intermediate_size"])
    found: dict[str, list[Tensor]] = {name: [] for name in (*QKV, *GATE_UP, *DOWN)}
    for rank in range(ranks):
        qkv, both, down = layers(path, ranks, rank)
        widths = [model.get_submodule(BLOCK + name).out_features // ranks for name in QKV]
        joined = (
            qkv.quant_method.apply(qkv, x).split(widths, -1),
            both.quant_method.apply(both, x).chunk(2, -1),
        )
        for name, piece in zip((*QKV, *GATE_UP), [*joined[0], *joined[1]], strict=True):
            found[name].append(piece)
        found["mlp.down_proj"].append(down.quant_method.apply(down, z.chunk(ranks, -1)[rank].contiguous()))
    for name in (*QKV, *GATE_UP):
        assert torch.equal(torch.cat(found[name], -1), model.get_submodule(BLOCK + name)(x)), name
    expected = model.get_submodule(f"{BLOCK}mlp.down_proj")(z)
    error = (sum(found["mlp.down_proj"]) - expected).norm() / expected.norm()
    # One activation scale a token is one for each rank's part of it; a scale a group is nobody else's.
    per_token = model.get_submodule(f"{BLOCK}mlp.down_proj").format.activation_group == "token"
    assert error < (0.02 if ranks > 1 and per_token else 1e-6)


def test_a_broken_checkpoint_is_refused(path: Path) -> None:
    tensors = load_file(path / "model.safetensors")
    del tensors[f"{BLOCK}mlp.down_proj.rows"]
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(MixllmError, match=r"mlp\.down_proj\.rows: missing"):
        config_of(path)


def test_ranks_that_would_cut_a_group_are_refused(tmp_path: Path) -> None:
    path = write_quantized(tmp_path, "llama", **{**SIZES, "intermediate_size": 384})
    with pytest.raises(MixllmError, match=r"2 ranks would cut its 384 inputs inside a group of 128"):
        layers(path, 2, 0)
