"""Reading a model's config.json and turning away what is no causal language model."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, PreTrainedConfig

from mixllm.errors import MixllmError, one_line
from mixllm.files import read_json
from mixllm.source.fp8 import block_size

ADAPTER = "adapter_config.json"


def read_config(path: Path) -> PreTrainedConfig:
    """The config in directory `path`.

    Raises MixllmError for a missing or unreadable config.json, a quantized model (but for those of
    mixllm.source.fp8, which it describes as floats), an encoder, an encoder-decoder, or a type that
    transformers has no causal language model for.
    """
    file = path / "config.json"
    if not file.is_file():
        if (path / ADAPTER).is_file():
            raise MixllmError(
                f"{path}: is a PEFT adapter; merge it into its model (merge_and_unload) and save that"
            )
        raise MixllmError(f"{path}: no config.json; give the directory that save_pretrained wrote")
    written = read_json(file)
    _check_type(written, file)
    _check_float(written.get("quantization_config"), file)
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(path, trust_remote_code=False)
    except Exception as error:  # transformers has a kind of error for each way a config is wrong
        raise MixllmError(f"{file}: {one_line(error)}") from None
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # the source gives such weights as floats
    return require_decoder(config, file)


def _check_float(quantized: Any, file: Path) -> None:
    """Raise MixllmError for a quantization_config, unless it is of what the source gives as floats."""
    if quantized is None or block_size(quantized) is not None:
        return
    method = quantized.get("quant_method") if isinstance(quantized, dict) else quantized
    by = f" ({method})" if method else ""
    raise MixllmError(f"{file}: the model is quantized already{by}; give the float model")


def require_decoder(config: PreTrainedConfig, file: Path) -> PreTrainedConfig:
    """The config, read from `file`; MixllmError unless it is of a causal language model."""
    kind = config.model_type
    if config.is_encoder_decoder:
        raise MixllmError(f"{file}: {kind} is an encoder-decoder model; only decoders can be quantized")
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise MixllmError(f"{file}: transformers has no causal language model of type {kind}")
    # is_decoder alone says little: decoders like GPT-NeoX carry a false one.
    saved_as = config.architectures or []
    if saved_as and not getattr(config, "is_decoder", True) and model_class(config).__name__ not in saved_as:
        raise MixllmError(f"{file}: {saved_as[0]} is an encoder; only decoders can be quantized")
    return config


def _check_type(config: dict[str, Any], file: Path) -> None:
    kind = config.get("model_type")
    if kind is None or kind in CONFIG_MAPPING:
        return
    if "auto_map" in config:
        raise MixllmError(f"{file}: {kind} needs code of its own, which mixllm does not run")
    raise MixllmError(
        f"{file}: transformers {version('transformers')} knows no model of type {kind}; a newer one may"
    )


def model_class(config: PreTrainedConfig) -> Any:
    """The transformers class of the causal language model with this config."""
    return MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
