"""Loading a checkpoint."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

from mixllm.errors import MixllmError, one_line
from mixllm.files import at_home
from mixllm.format.config import read_config
from mixllm.format.shards import find_shards
from mixllm.integrations import register
from mixllm.kernels import Backend
from mixllm.placement import pick_device

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel


def load(
    path: str | PathLike[str],
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    backend: Backend = "auto",
) -> PreTrainedModel:
    """The quantized model in the checkpoint directory `path`, in eval mode.

    device: where to load it, straight from the files: "auto", "cpu", "cuda", "cuda:1" (see
        mixllm.placement) or torch's; None, the CPU.
    dtype: of everything that is not quantized and of the hidden states; None, as it was saved.
    backend: who computes the quantized layers; see mixllm.kernels.prepare.
    Raises MixllmError, before anything is allocated, for whatever is wrong with the directory, and
    after loading if a tensor of the model was not in it.
    """
    if backend not in get_args(Backend):
        raise MixllmError(f"backend: {backend!r} is unknown; give {', '.join(get_args(Backend))}")
    where = pick_device(device) if isinstance(device, str) else device
    directory = at_home(path)
    config = open_config(directory)
    find_shards(directory)
    from transformers import AutoModelForCausalLM

    from mixllm.nn import MixLinear

    loaded: Any = AutoModelForCausalLM.from_pretrained(
        directory,
        config=config,
        dtype="auto" if dtype is None else dtype,
        device_map=None if where is None else {"": where},
        output_loading_info=True,
        local_files_only=True,
        trust_remote_code=False,
    )
    model, info = cast("tuple[PreTrainedModel, dict[str, Any]]", loaded)
    for fault, reason in (("missing_keys", "missing"), ("unexpected_keys", "no part of this model")):
        if names := sorted(info[fault]):
            raise MixllmError(f"{directory}: tensor {names[0]}: {reason}; the checkpoint is not whole")
    for module in model.modules():
        if isinstance(module, MixLinear):
            module.backend = backend
    return model


def open_config(directory: Path) -> PreTrainedConfig:
    """The transformers config of the checkpoint in a directory; MixllmError where it can't be read."""
    read_config(directory)
    register()
    from transformers import AutoConfig

    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            directory, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # transformers has a kind of error for each way a config is wrong
        raise MixllmError(f"{directory / 'config.json'}: {one_line(error)}") from None
    return config
