"""A GGUF file as a directory of safetensors, converted by transformers' own reader.

Weights are stored in the smallest of bfloat16, float16 and float32 that holds every value exactly,
so nothing is lost: files of 16-bit floats stay as small as they were, quantized ones become float32
(a 4-bit code times a float16 scale plus a float16 minimum needs more than the 11 bits of float16).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import gguf
import torch
import transformers
from accelerate import init_empty_weights
from gguf import GGMLQuantizationType, GGUFReader, TokenType
from tokenizers import AddedToken, pre_tokenizers
from tokenizers.models import Unigram
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig

from mixllm.errors import MixllmError, one_line
from mixllm.source.config import require_decoder
from mixllm.source.merges import bpe_of
from mixllm.source.whole import require_all

# A tokenizer's attribute -> the metadata's word for it.
SPECIAL = {"pad_token": "padding", "bos_token": "bos", "eos_token": "eos", "unk_token": "unknown"}
LONG = (".tokens", ".token_type", ".merges", ".scores")


def open_gguf(file: Path) -> GGUFReader:
    """What a GGUF file says of itself. Raises MixllmError where it is no whole one."""
    try:
        return GGUFReader(file)
    except (ValueError, IndexError, KeyError, OSError) as error:
        raise MixllmError(f"{file}: not a whole GGUF file ({one_line(error)}); download it again") from None


def convert(file: Path, opened: GGUFReader, out: Path) -> None:
    """Write the model of a GGUF file, its tokenizer and configs into the directory `out`.

    The whole model is in memory, as float32, meanwhile. Raises MixllmError where transformers can't read it
    or it lacks a tensor, OSError or SafetensorError where `out` can't be written.
    """
    auto: Any = AutoModelForCausalLM
    where = {
        "pretrained_model_name_or_path": file.parent, "gguf_file": file.name, "trust_remote_code": False,
    }  # fmt: skip
    # Newer versions of transformers would keep the weights packed where they find kernels for them.
    unpacked = transformers.GgufConfig(dequantize=True) if hasattr(transformers, "GgufConfig") else None
    with _read_by_transformers(file, opened):
        read, info = auto.from_pretrained(
            **where, dtype=torch.float32, quantization_config=unpacked, output_loading_info=True
        )
        require_all(info["missing_keys"], str(file))
        tokenizer: Any = AutoTokenizer.from_pretrained(**where)
    metadata = _metadata(opened)
    _mend_merges(tokenizer, metadata, opened)
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


def read_gguf_config(file: Path, opened: GGUFReader) -> PreTrainedConfig:
    """The config that convert() would write, as far as it can be told without it; MixllmError as there."""
    with _read_by_transformers(file, opened):
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            file.parent, gguf_file=file.name, trust_remote_code=False
        )
    config.dtype = _likely_dtype(opened)
    return require_decoder(config, file)


def converted_bytes(opened: GGUFReader) -> int:
    """What the weights of a GGUF file will take when they are converted."""
    return _likely_dtype(opened).itemsize * sum(int(tensor.n_elements) for tensor in opened.tensors)


@contextmanager
def _read_by_transformers(file: Path, opened: GGUFReader) -> Iterator[None]:
    """transformers, which would parse the file for the config, the weights and the tokenizer anew, is given
    what is parsed already: a vocabulary of 49,152 tokens takes a processor 2.6 seconds each time."""

    def reader(path: Any, *arguments: Any) -> GGUFReader:
        return opened if Path(path) == file else parse(path, *arguments)

    parse, package = GGUFReader, cast("Any", gguf)
    package.GGUFReader = reader  # where transformers takes it from at each call
    try:
        yield
    except (ValueError, KeyError, NotImplementedError, RuntimeError) as error:
        raise MixllmError(f"{file}: transformers cannot read it ({one_line(error)})") from None
    finally:
        package.GGUFReader = parse


def _metadata(opened: GGUFReader) -> dict[str, Any]:
    fields = opened.fields
    wanted = [key for key in fields if key.startswith("tokenizer.") and not key.endswith(LONG)]
    return {key: fields[key].contents() for key in wanted}


def _likely_dtype(opened: GGUFReader) -> torch.dtype:
    """What _exact_dtype() is going to find: vectors lie in float32 and seldom need it."""
    matrices = {tensor.tensor_type for tensor in opened.tensors if len(tensor.shape) > 1}
    half = {GGMLQuantizationType.BF16: torch.bfloat16, GGMLQuantizationType.F16: torch.float16}
    return half.get(matrices.pop(), torch.float32) if len(matrices) == 1 else torch.float32


def _exact_dtype(model: torch.nn.Module) -> torch.dtype:
    for dtype in (torch.bfloat16, torch.float16):
        if all(torch.equal(p.to(dtype).float(), p) for p in model.parameters()):
            return dtype
    return torch.float32


def _mend_merges(tokenizer: Any, metadata: dict[str, Any], opened: GGUFReader) -> None:
    """Give Gemma's tokenizer its merges and control tokens, where transformers (5.17 does) takes its pieces
    for a Unigram model: with that, text falls into single characters and perplexity is in the thousands.

    Runs of spaces, which the model spells otherwise, are merged like other text.
    """
    backend = tokenizer.backend_tokenizer
    if metadata.get("tokenizer.ggml.model") != "llama" or not isinstance(backend.model, Unigram):
        return
    fields = opened.fields
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
