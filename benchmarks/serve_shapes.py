"""Model directories that hold a config.json and no tensors, for an engine that draws the weights itself.

A scheme is one way to store the linear layers: mixllm's, or one that vLLM has built in.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mixllm.config import PROFILES
from mixllm.format.config import QuantizedModule, quantization_config

SHAPES: dict[str, dict[str, Any]] = {
    "llama-3.1-8b": {
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128256, "rope_theta": 500000.0,
    },
    "tiny": {
        "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 64, "vocab_size": 512, "rope_theta": 10000.0,
    },
}  # fmt: skip
# 8-bit rows in every mixed layer: with as many everywhere, 4.4 payload bits a weight.
SHARE8 = 0.1


@dataclass(frozen=True)
class Scheme:
    """stored: the quantization_config of config.json; engine: what vLLM is told beside it."""

    stored: dict[str, Any] | None = None
    engine: dict[str, Any] = field(default_factory=dict)


GPTQ = {
    "quant_method": "gptq",
    "bits": 4,
    "group_size": 128,
    "desc_act": False,
    "sym": True,
    "lm_head": False,
    # Without these vLLM looks for quantized tensors in files, finds none and serves float weights.
    "modules_in_block_to_quantize": [
        *(f"self_attn.{name}_proj" for name in "qkvo"),
        *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
    ],
}
_INT8 = {"num_bits": 8, "type": "int", "symmetric": True}
INT8 = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "ignore": ["lm_head"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {**_INT8, "strategy": "channel", "dynamic": False},
            "input_activations": {**_INT8, "strategy": "token", "dynamic": True},
        }
    },
}
SCHEMES = {
    "mixed": Scheme(),  # its quantization_config depends on the shape
    "bf16": Scheme(),
    "w4a16": Scheme(GPTQ),  # whichever kernel vLLM prefers on the device
    "w4a16-marlin": Scheme(GPTQ, {"linear_backend": "marlin"}),
    "w8a8": Scheme(INT8),
    "fp8": Scheme(engine={"quantization": "fp8"}),
}


def write_shape(directory: Path, shape: str, scheme: str) -> None:
    """Writes directory/config.json: a Llama of SHAPES[shape], its linear layers stored by SCHEMES[scheme]."""
    sizes = SHAPES[shape]
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "torch_dtype": "bfloat16",
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 1,
        **sizes,
    }
    stored = _mixed(sizes) if scheme == "mixed" else SCHEMES[scheme].stored
    if stored is not None:
        config["quantization_config"] = stored
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(config))


def _mixed(sizes: dict[str, Any]) -> dict[str, Any]:
    hidden, inner = sizes["hidden_size"], sizes["intermediate_size"]
    heads, few = (sizes[f"num_{kind}_heads"] * sizes["head_dim"] for kind in ("attention", "key_value"))
    linears = {
        "self_attn.q_proj": (hidden, heads), "self_attn.k_proj": (hidden, few),
        "self_attn.v_proj": (hidden, few), "self_attn.o_proj": (heads, hidden),
        "mlp.gate_proj": (hidden, inner), "mlp.up_proj": (hidden, inner), "mlp.down_proj": (inner, hidden),
    }  # fmt: skip
    modules = {
        f"model.layers.{layer}.{name}": QuantizedModule(
            k, n, {4: n - round(n * SHARE8), 8: round(n * SHARE8)}
        )
        for layer in range(sizes["num_hidden_layers"])
        for name, (k, n) in linears.items()
    }
    return quantization_config(PROFILES["fast"], modules)
