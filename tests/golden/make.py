"""Makes the golden checkpoints: python -m tests.golden.make

Each is a Llama of one block (K = 136, 8 and 20: a short last group, half a byte, odd counts), or such a
Mixtral of three experts ("experts"), or one with rows of all widths ("widths", "widths-paper"), beside the
numbers that it gave when it was made. They are committed and load for ever, so one that exists is never
made again: a new version of the format adds its own.
"""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from tests.format.layers import packed_layers
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from mixllm.config import PROFILES, Format
from mixllm.format.checkpoint import write_checkpoint
from mixllm.format.pack import unpack
from mixllm.loading import load
from mixllm.nn import MixLinear
from mixllm.source import open_source

HERE = Path(__file__).parent
FAST, PAPER = PROFILES["fast"], PROFILES["paper"]
GOLDEN = {
    **PROFILES,
    "row": Format(weight_scale="row", activation_group=256),
    "experts": FAST,
    "widths": FAST,
    "widths-paper": PAPER,
}
MIXTURE = {"num_local_experts": 3, "num_experts_per_tok": 2}
IDS = torch.tensor([[1, 7, 3, 3, 12, 0, 15]])


def inputs(k: int) -> Tensor:
    """Two tokens of exact values, one input much larger than the others, from no random generator."""
    places = torch.arange(2 * k).reshape(2, k)
    x = ((places * 37) % 29 - 14) / 8
    x[:, k // 3] *= 16
    return x


def digest(layer: MixLinear) -> str:
    """Of every weight, exactly."""
    weight = unpack(layer.stored, layer.format).dequantize()
    return hashlib.sha256(weight.numpy().astype("<f4").tobytes()).hexdigest()


def write_float(path: Path, mixture: bool) -> None:
    config = AutoConfig.for_model(
        "mixtral" if mixture else "llama",
        vocab_size=16,
        hidden_size=136,
        intermediate_size=20,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=4,
        tie_word_embeddings=True,
        max_position_embeddings=64,
        **(MIXTURE if mixture else {}),
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    model.to(torch.bfloat16).save_pretrained(path)


def make(name: str, format: Format) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        write_float(Path(scratch), mixture=name == "experts")
        checkpoint = HERE / name / "checkpoint"
        checkpoint.mkdir(parents=True)
        source = open_source(scratch)
        share8 = None if name.startswith("widths") else 0.3
        write_checkpoint(checkpoint, source, format, packed_layers(source, format, share8))
    model = load(checkpoint, dtype=torch.float32)
    layers = {name: m for name, m in model.named_modules() if isinstance(m, MixLinear)}
    with torch.no_grad():
        expected = {name: layer(inputs(layer.in_features)) for name, layer in layers.items()}
        expected["logits"] = model(IDS).logits
    digests = {name: digest(layer) for name, layer in layers.items()}
    save_file(expected, HERE / name / "expected.safetensors", metadata=digests)


if __name__ == "__main__":
    for name, format in GOLDEN.items():
        if not (HERE / name).exists():
            make(name, format)
