"""What engines ask of a quantization's config and get the same answers to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from mixllm.config import Format
from mixllm.errors import MixllmError
from mixllm.format.config import QUANT_METHOD, QuantizedModule
from mixllm.format.validate import validate


class ServedConfig:
    """A checkpoint's quantization_config; stands before the engine's own base class.

    modules: by the names that the engine's model gives them.
    """

    def __init__(
        self, format: Format | None = None, modules: Mapping[str, QuantizedModule] | None = None
    ) -> None:
        """Raises MixllmError without both: so engines ask for a model that is not quantized."""
        if format is None or modules is None:
            raise MixllmError(
                "--quantization mixllm: the model's config.json has no quantization_config; give a directory "
                "that mixllm quantize wrote, or leave the option out"
            )
        super().__init__()
        self.format, self.modules = format, dict(modules)

    @classmethod
    def get_name(cls) -> str:
        return QUANT_METHOD

    @classmethod
    def get_supported_act_dtypes(cls) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16, torch.float32]

    @classmethod
    def get_min_capability(cls) -> int:
        return 80

    @staticmethod
    def get_config_filenames() -> list[str]:
        return []


def check_directory(model: str) -> None:
    """Raise MixllmError for a broken checkpoint before any memory is taken.

    A name on the hub is not downloaded yet; its tensors are checked layer by layer as they come.
    """
    directory = Path(model)
    if model and directory.is_dir() and any(directory.glob("*.safetensors*")):
        validate(directory)
