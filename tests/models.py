"""Tiny random models, eight architectures and four mixtures of experts, as a user's directory would be.

Sizes are odd on purpose: hidden 72 or 96 and intermediates that are no multiple of 128, two or three
blocks, grouped-query attention. Weights are large enough that every layer matters to the loss.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.models.auto.configuration_auto import AutoConfig

ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3", "gemma3_text", "phi3", "olmo2", "gpt_neox")
MIXTURES = ("mixtral", "qwen3_moe", "olmoe", "deepseek_v3")

SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")
MERGES = (("t", "h"), ("th", "e"), ("i", "n"), ("Ġ", "the"), ("a", "n"), ("e", "r"), ("o", "n"))
VOCAB = len(SPECIAL) + 256 + len(MERGES)
CHAT_TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)

_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 72,
    "intermediate_size": 136,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_OWN: dict[str, dict[str, Any]] = {
    "llama": {"num_hidden_layers": 3},
    "mistral": {"hidden_size": 96, "head_dim": 24, "num_attention_heads": 4, "sliding_window": 16},
    "qwen2": {"intermediate_size": 200},
    "qwen3": {"head_dim": 16, "intermediate_size": 152},
    "gemma3_text": {
        "num_hidden_layers": 3,
        "head_dim": 16,
        "query_pre_attn_scalar": 16,
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    "phi3": {"hidden_size": 96},
    "olmo2": {},
    "gpt_neox": {"hidden_size": 96},
    "helium": {"head_dim": 12},
    "ernie4_5": {},
    "mixtral": {"num_local_experts": 3, "num_experts_per_tok": 2},
    "qwen3_moe": {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 40, "head_dim": 16},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 56},
    # Latent attention, whose kv_b_proj sees four dimensions, and an expert for all tokens.
    "deepseek_v3": {
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 40,
        "first_k_dense_replace": 0,
        "n_shared_experts": 1,
        "n_group": 1,
        "topk_group": 1,
        "q_lora_rank": 24,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 16,
    },
}


def tiny_config(architecture: str, tie: bool = False, **sizes: Any) -> Any:
    """The transformers config of a tiny model; sizes: fields that replace its own."""
    fields = {**_COMMON, **_OWN[architecture], "tie_word_embeddings": tie, **sizes}
    return AutoConfig.for_model(architecture, **fields)


def tiny_model(
    architecture: str, *, tie: bool = False, seed: int = 0, dtype: torch.dtype = torch.float32, **sizes: Any
) -> Any:
    """A random model in eval mode; weights [N, K] are normal / sqrt(K), vectors moved off 0 and 1."""
    auto: Any = AutoModelForCausalLM
    model = auto.from_config(tiny_config(architecture, tie, **sizes), attn_implementation="sdpa")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() == 1:
                parameter.add_(0.2 * noise)
            else:
                parameter.copy_(noise * parameter.shape[-1] ** -0.5)
    return model.to(dtype).eval()


def tiny_tokenizer(bos: bool = False) -> Any:
    """A byte-level BPE of VOCAB tokens that reads any text; bos: every encoding starts with <bos>."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = (*SPECIAL, *alphabet, *(a + b for a, b in MERGES))
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=list(MERGES)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", 1)]
        )
    pad, begin, end, unknown = SPECIAL
    fast_class: Any = PreTrainedTokenizerFast
    fast = fast_class(
        tokenizer_object=tokenizer, pad_token=pad, bos_token=begin, eos_token=end, unk_token=unknown
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def write_tiny(
    path: Path,
    architecture: str = "llama",
    *,
    tie: bool = False,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    shard_size: str = "5GB",
    published: bool = True,
    **sizes: Any,
) -> Any:
    """Write config, weights, generation_config, tokenizer and chat template to `path`; returns the model.

    published: name and cut tensors as published files do, and not as transformers' modules do.
    """
    model = tiny_model(architecture, tie=tie, seed=seed, dtype=dtype, **sizes)
    model.generation_config.max_new_tokens = 7
    model.save_pretrained(path, max_shard_size=shard_size, save_original_format=published)
    tiny_tokenizer(bos=architecture == "gemma3_text").save_pretrained(path)
    return model
