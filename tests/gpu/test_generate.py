"""transformers' generate with a static cache, whose forward it compiles (CUDA graphs and all)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers.generation.configuration_utils import CompileConfig

import mixllm
from mixllm.config import PROFILES
from tests.format.layers import write_quantized

pytestmark = pytest.mark.gpu

SIZES = {"hidden_size": 192, "intermediate_size": 392}


@pytest.mark.parametrize("architecture", ["llama", "mixtral"])
@pytest.mark.parametrize("profile", PROFILES)
def test_a_static_cache_gives_the_same_text(tmp_path: Path, architecture: str, profile: str) -> None:
    path = write_quantized(tmp_path, architecture, PROFILES[profile], **SIZES)
    model = mixllm.load(path, device="cuda")
    ids = torch.randint(4, 200, (2, 9), device="cuda", generator=torch.Generator("cuda").manual_seed(1))
    how = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    usual = model.generate(ids, **how)
    # A mixture's routing is no whole graph.
    config = CompileConfig(fullgraph=architecture == "llama")
    static = model.generate(ids, **how, cache_implementation="static", compile_config=config)
    assert torch.equal(static, usual) and model._compiled_call is not None
