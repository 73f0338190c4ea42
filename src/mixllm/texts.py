"""A model's tokenizer, and a named text cut into windows that the model can read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import AutoTokenizer, PreTrainedConfig

from mixllm.data import load_text, windows
from mixllm.errors import MixllmError, one_line

# Names of the files that tokenizers are made of.
TOKENIZERS = ("tokenizer*", "vocab*", "*.model")


def open_tokenizer(path: Path) -> Any:
    """The tokenizer in a model's or a checkpoint's directory. Raises MixllmError where there is none."""
    try:
        return AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except Exception as error:  # transformers and tokenizers have a kind of error for each way
        held = any(file for pattern in TOKENIZERS for file in path.glob(pattern))
        said = one_line(error) if held else "no tokenizer.json or other file of one"
        raise MixllmError(
            f"{path}: its tokenizer cannot be opened; put the model's own there ({said})"
        ) from None


def context(config: PreTrainedConfig) -> int | None:
    """Tokens that the model of this config reads at most; None where it sets no bound."""
    model = config.get_text_config()
    found = getattr(model, "max_position_embeddings", None) or getattr(model, "max_seq_len", None)  # MPT's
    return found if isinstance(found, int) and found > 0 else None  # XLNet's is -1


def prompt_tokens(tokenizer: Any, prompt: str, config: PreTrainedConfig) -> Any:
    """What generate() of the model of config takes, int64 [1, n] each.

    Raises MixllmError for a prompt without tokens, and for one that leaves no room for an answer.
    """
    inputs = tokenizer(prompt, return_tensors="pt")
    if not inputs["input_ids"].shape[1]:
        raise MixllmError(f"--prompt: {prompt!r} has no tokens; give some text")
    answer_tokens(inputs, config, "--prompt")
    return inputs


def answer_tokens(inputs: Any, config: PreTrainedConfig, what: str, most: int = 1) -> int:
    """`most`, or as many tokens as the model of config can write after these inputs, if those are fewer.

    Raises MixllmError where it can write none; what: what the inputs are of.
    """
    count, limit = inputs["input_ids"].shape[1], context(config)
    if limit is not None and count >= limit:
        raise MixllmError(f"{what}: {count} tokens, but the model reads at most {limit}; give a shorter one")
    return most if limit is None else min(most, limit - count)


def require_window(length: int, config: PreTrainedConfig) -> None:
    """Raise MixllmError for windows longer than what the model of this config reads."""
    limit = context(config)
    if limit is not None and length > limit:
        raise MixllmError(
            f"window: {length} tokens, but the model reads at most {limit}; give a --window of no more"
        )


def text_windows(
    text: str,
    tokenizer: Any,
    config: PreTrainedConfig,
    length: int,
    count: int | None = None,
    seed: int | None = None,
) -> Tensor:
    """`text` (see load_text) in windows int64 [n, length] (see mixllm.data.windows) for the model of config.

    Raises MixllmError, one line that names the text, for one that is too short, for windows longer than the
    model's context, and for tokens that it does not have.
    """
    model = config.get_text_config()
    require_window(length, config)
    documents = load_text(text)
    try:
        ids = windows(documents, tokenizer, length, count, seed)
    except MixllmError as error:
        raise MixllmError(f"{text}: {error}") from None
    if (largest := int(ids.max())) >= model.vocab_size:
        raise MixllmError(
            f"{text}: the tokenizer gives token {largest}, but the model has {model.vocab_size}; "
            "put its own tokenizer beside it"
        )
    return ids
