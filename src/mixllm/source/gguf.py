"""A GGUF file as a directory of safetensors: converted once, by transformers' own reader.

Weights are stored in the smallest of bfloat16, float16 and float32 that holds every value exactly,
so nothing is lost: files of 16-bit floats stay as small as they were, quantized ones become float32
(a 4-bit code times a float16 scale plus a float16 minimum needs more than the 11 bits of float16).
"""

from __future__ import annotations

import copy
import hashlib
import os
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import init_empty_weights
from gguf import GGUFReader, TokenType
from safetensors import SafetensorError
from tokenizers import AddedToken, pre_tokenizers
from tokenizers.models import Unigram
from transformers import AutoModelForCausalLM, AutoTokenizer

from mixllm.errors import MixllmError, one_line
from mixllm.files import write_directory
from mixllm.source.merges import bpe_of

# A tokenizer's attribute -> the metadata's word for it.
SPECIAL = {"pad_token": "padding", "bos_token": "bos", "eos_token": "eos", "unk_token": "unknown"}
# Counted up when conversions that lie in users' caches must be made anew.
CONVERSION = 2
LONG = (".tokens", ".token_type", ".merges", ".scores")


def convert(file: Path, work: Path | None = None) -> Path:
    """The directory with the model of a GGUF file; made now, unless it was before.

    work: where the directory is made; None, the user's cache. It is named by the file's name, size
    and time, so a changed file is converted again. The whole model is in memory, as float32, while
    it is converted. Raises MixllmError when the file is missing, damaged or of an unknown kind.
    """
    if not file.is_file():
        raise MixllmError(f"{file}: no such file")
    parent = work or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mixllm"
    status = file.stat()
    named = f"{file.resolve()} {status.st_size} {status.st_mtime_ns} {CONVERSION}"
    mark = hashlib.sha256(named.encode()).hexdigest()
    done = parent / f"{file.stem}-{mark[:12]}"
    if done.is_dir():
        return done
    try:
        with write_directory(done) as part:
            _write(file, _metadata(file), part)
    except (OSError, SafetensorError) as error:
        # Another process may have been quicker: its directory is as good.
        if not done.is_dir():
            raise MixllmError(f"{done}: cannot be written ({one_line(error)})") from None
    return done


def _metadata(file: Path) -> dict[str, Any]:
    try:
        fields = GGUFReader(file).fields
        wanted = [key for key in fields if key.startswith("tokenizer.") and not key.endswith(LONG)]
        return {key: fields[key].contents() for key in wanted}
    except (ValueError, IndexError, KeyError, OSError) as error:
        raise MixllmError(f"{file}: not a whole GGUF file ({one_line(error)}); download it again") from None


def _write(file: Path, metadata: dict[str, Any], out: Path) -> None:
    auto: Any = AutoModelForCausalLM
    where = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
    # Newer versions of transformers would keep the weights packed where they find kernels for them.
    unpacked = transformers.GgufConfig(dequantize=True) if hasattr(transformers, "GgufConfig") else None
    try:
        read = auto.from_pretrained(**where, dtype=torch.float32, quantization_config=unpacked)
        tokenizer: Any = AutoTokenizer.from_pretrained(**where)
    except (ValueError, KeyError, NotImplementedError, RuntimeError) as error:
        raise MixllmError(f"{file}: transformers cannot read it ({one_line(error)})") from None
    _mend_merges(tokenizer, metadata, file)
    _mend_tokenizer(tokenizer, metadata, read.config.get_text_config().max_position_embeddings)
    # A model read from GGUF counts as quantized and will not save; a new one takes its tensors.
    config = copy.deepcopy(read.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with init_empty_weights(include_buffers=False):
        model = auto.from_config(config, dtype=_exact_dtype(read))
    tensors = {name: tensor.to(model.dtype) for name, tensor in read.state_dict().items()}
    model.load_state_dict(tensors, assign=True)
    model.tie_weights()
    model.generation_config = read.generation_config
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def _exact_dtype(model: torch.nn.Module) -> torch.dtype:
    for dtype in (torch.bfloat16, torch.float16):
        if all(torch.equal(p.to(dtype).float(), p) for p in model.parameters()):
            return dtype
    return torch.float32


def _mend_merges(tokenizer: Any, metadata: dict[str, Any], file: Path) -> None:
    """Give Gemma's tokenizer its merges and control tokens, where transformers (5.17 does) takes its pieces
    for a Unigram model: with that, text falls into single characters and perplexity is in the thousands.

    Runs of spaces, which the model spells otherwise, are merged like other text.
    """
    backend = tokenizer.backend_tokenizer
    if metadata.get("tokenizer.ggml.model") != "llama" or not isinstance(backend.model, Unigram):
        return
    fields = GGUFReader(file).fields
    pieces = fields["tokenizer.ggml.tokens"].contents()
    unknown = metadata.get("tokenizer.ggml.unknown_token_id")
    backend.model = bpe_of(pieces, None if unknown is None else pieces[unknown])
    kinds = zip(pieces, fields["tokenizer.ggml.token_type"].contents(), strict=True)
    backend.add_tokens(
        [
            AddedToken(piece, normalized=False, special=kind == TokenType.CONTROL)
            for piece, kind in kinds
            if kind in (TokenType.CONTROL, TokenType.USER_DEFINED) and backend.token_to_id(piece) is not None
        ]
    )


def _mend_tokenizer(tokenizer: Any, metadata: dict[str, Any], context: int) -> None:
    """Put right what transformers, or one of its versions, does not take from the metadata."""
    for token, key in SPECIAL.items():
        if (number := metadata.get(f"tokenizer.ggml.{key}_token_id")) is not None:
            setattr(tokenizer, token, tokenizer.convert_ids_to_tokens(number))
    if metadata.get("tokenizer.ggml.pre") == "smollm":
        # SmolLM's merges were learned on text cut at every digit, before GPT-2's pattern.
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    if not tokenizer.chat_template:
        tokenizer.chat_template = metadata.get("tokenizer.chat_template")
    begins = metadata.get("tokenizer.ggml.add_bos_token")
    if begins is not None and begins != getattr(tokenizer, "add_bos_token", begins):
        tokenizer.add_bos_token = begins
    tokenizer.clean_up_tokenization_spaces = False
    tokenizer.model_max_length = context
