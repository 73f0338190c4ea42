"""The types that `architectures.py` tries, and what makes each of them tiny."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

VOCABULARY = 270

DENSE = """
    apertus arcee bitnet bloom cohere cohere2 ernie4_5 exaone4 falcon gemma gemma2 gemma3_text gemma4_text
    glm glm4 gpt2 gpt_bigcode gpt_neox gptj granite helium hunyuan_v1_dense internlm3 llama minicpm3
    ministral ministral3 mistral mpt nanochat nemotron olmo olmo2 olmo3 opt persimmon phi phi3 qwen2 qwen3
    seed_oss smollm3 stablelm starcoder2 vaultgemma youtu
"""
MIXTURES = """
    afmoe deepseek_v2 deepseek_v3 deepseek_v32 deepseek_v4 dots1 ernie4_5_moe exaone_moe flex_olmo
    glm4_moe glm4_moe_lite glm_moe_dsa gpt_oss granitemoe hunyuan_v1_moe hy_v3 jetmoe laguna llama4_text
    longcat_flash mimo_v2_flash minimax minimax_m2 mixtral olmoe phimoe qwen2_moe qwen3_moe solar_open
"""
OTHERS = """
    bamba falcon_h1 falcon_mamba granitemoehybrid jamba lfm2 lfm2_moe mamba mamba2 nemotron_h olmo_hybrid
    qwen3_5_moe_text qwen3_5_text qwen3_next recurrent_gemma rwkv
"""
# Whatever of these a config knows. Hidden and inner sizes are no multiples of 128.
SMALL: dict[str, Any] = {
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), VOCABULARY),
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "word_embed_proj_dim", "lru_width"), 96),
    **dict.fromkeys(("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size"), 136),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "linear_num_key_heads", "index_n_heads"), 2),
    **dict.fromkeys(("head_dim", "attention_head_dim", "global_head_dim", "mamba_d_head"), 24),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "moe_k"), 2),
    **dict.fromkeys(
        ("moe_intermediate_size", "shared_expert_intermediate_size", "expert_ffn_hidden_size"), 40
    ),
    **dict.fromkeys(("n_shared_experts", "num_shared_experts", "n_group", "topk_group"), 1),
    **dict.fromkeys(("first_k_dense_replace", "zero_expert_num"), 1),
    **dict.fromkeys(("kv_lora_rank", "v_head_dim", "sliding_window", "hidden_size_per_layer_input"), 16),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "mamba_d_state", "state_size"), 16),
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim", "mamba_n_heads"), 8),
    "q_lora_rank": 24,
    "index_topk": 64,  # no fewer than there are tokens: which are left out is no matter of rounding
    "linear_num_value_heads": 4,
    "index_head_dim": 16,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LATENT = {"head_dim": 8, "num_key_value_heads": 4}  # attention of one latent vector: its heads' rotated part
DEEPER = {"num_hidden_layers": 4}  # so that both kinds of block occur
OWN: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("deepseek_v3", "deepseek_v32", "glm4_moe_lite", "glm_moe_dsa", "longcat_flash"), LATENT),
    **dict.fromkeys(("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text", "olmo_hybrid"), DEEPER),
    "gemma4_text": {"hidden_size_per_layer_input": 0},  # as in its larger models
    "gptj": {"rotary_dim": 8},
    "youtu": {**LATENT, "pad_token_id": None},  # whose embedding transformers makes 0 when it loads a model
    "bamba": {"attn_layer_indices": [1]},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "jamba": {"attn_layer_offset": 1, "attn_layer_period": 2},
    "falcon_h1": {"mamba_d_ssm": 192},
    "mamba2": {"num_heads": 8, "head_dim": 24},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "recurrent_gemma": {"num_hidden_layers": 3},
}


def types() -> list[str]:
    """Those that this version of transformers has."""
    return [kind for kind in (DENSE + MIXTURES + OTHERS).split() if kind in CONFIG_MAPPING]


def config_of(kind: str) -> Any:
    """The type's own config with the sizes above."""
    default = CONFIG_MAPPING[kind]()
    known = {*default.to_dict(), *getattr(default, "attribute_map", {})}
    sizes = {name: value for name, value in SMALL.items() if name in known}
    return AutoConfig.for_model(kind, **{**sizes, **OWN.get(kind, {})})
