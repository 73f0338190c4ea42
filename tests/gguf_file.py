"""A tiny Llama as a GGUF file, as llama.cpp's converter lays it out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
from torch import Tensor

from tests.models import CHAT_TEMPLATE, tiny_model, tiny_tokenizer

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "model.layers": "blk",
}


def write_gguf(
    file: Path, *, tie: bool, pre: str = "smollm", half: bool = False, bos: bool = False, without: str = ""
) -> Any:
    """Write a tiny Llama, as float16 or float32; returns the transformers model it was made from.

    without: the model's name of a tensor that is left out.
    """
    model = tiny_model("llama", tie=tie)
    if half:
        # The parameters alone: the rotary frequencies stay float32.
        for parameter in model.parameters():
            parameter.data = parameter.data.half().float()
    config = model.config
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    _add_tokenizer(writer, pre, bos)
    for name, tensor in model.state_dict().items():
        if name != without and not (tie and name.startswith("lm_head")):
            heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
            values = _interleaved(tensor, next((h for key, h in heads.items() if key in name), 0)).numpy()
            # llama.cpp keeps vectors in float32.
            kind = np.float16 if half and values.ndim > 1 else np.float32
            writer.add_tensor(_name(name), values.astype(kind))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def _add_tokenizer(writer: gguf.GGUFWriter, pre: str, bos: bool) -> None:
    backend = tiny_tokenizer().backend_tokenizer
    vocabulary = sorted(backend.get_vocab().items(), key=lambda item: item[1])
    tokens = [token for token, _ in vocabulary]
    special = {token.content for token in backend.get_added_tokens_decoder().values()}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in special else 1 for token in tokens])
    merges = ["t h", "th e", "i n", "Ġ the", "a n", "e r", "o n"]
    writer.add_token_merges(merges)
    writer.add_pad_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(3)
    writer.add_add_bos_token(bos)
    writer.add_chat_template(CHAT_TEMPLATE)


def _interleaved(weight: Tensor, heads: int) -> Tensor:
    """llama.cpp rotates neighbours where transformers rotates halves, so q and k rows are reordered."""
    if not heads:
        return weight
    n, k = weight.shape
    return weight.reshape(heads, 2, n // heads // 2, k).transpose(1, 2).reshape(n, k)


def _name(name: str) -> str:
    for ours, theirs in NAMES.items():
        name = name.replace(ours, theirs)
    return name
