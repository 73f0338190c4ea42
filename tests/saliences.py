"""The one generator of salience without a model: losses that differ by layer and fall with the width."""

from __future__ import annotations

import torch

from mixllm.config import Format
from mixllm.plan import ModuleSalience, Salience

# name -> (out_features, in_features); odd, and unequal in length as real layers are.
SHAPES = {
    "model.layers.0.self_attn.q_proj": (7, 72),
    "model.layers.0.mlp.down_proj": (5, 200),
    "model.layers.1.self_attn.q_proj": (9, 72),
    "model.layers.1.mlp.down_proj": (5, 200),
}
LLAMA_8B = {
    f"model.layers.{i}.{name}": shape
    for i in range(32)
    for name, shape in {
        "self_attn.q_proj": (4096, 4096),
        "self_attn.k_proj": (1024, 4096),
        "self_attn.v_proj": (1024, 4096),
        "self_attn.o_proj": (4096, 4096),
        "mlp.gate_proj": (14336, 4096),
        "mlp.up_proj": (14336, 4096),
        "mlp.down_proj": (4096, 14336),
    }.items()
}


def random_salience(
    shapes: dict[str, tuple[int, int]] | None = None,
    widths: tuple[int, ...] = (4, 8),
    seed: int = 0,
    format: Format | None = None,
) -> Salience:
    generator = torch.Generator().manual_seed(seed)
    modules = {}
    for name, (n, k) in (shapes or SHAPES).items():
        loss = torch.rand(n, generator=generator) * torch.rand(1, generator=generator) * 1e-4
        modules[name] = ModuleSalience(k, {width: loss * 4.0 ** (widths[0] - width) for width in widths})
    return Salience(modules, "fisher", "gptq", tokens=1000, format=format or Format(), other_bytes=12345)
