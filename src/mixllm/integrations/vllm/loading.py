"""Which of vLLM's load formats suit a layer whose tensors are gathered first and then laid out."""

from __future__ import annotations

from vllm.config import get_current_vllm_config

from mixllm.errors import MixllmError

# They read or write the parameters of a layer as it runs, and a mixed layer has none then.
REFUSED = ("sharded_state", "runai_streamer_sharded", "tensorizer", "modelexpress")


def is_dummy(prefix: str) -> bool:
    """Whether vLLM draws weights instead of loading them.

    Raises MixllmError where the load format can't load a mixed layer; prefix: its name."""
    given = str(get_current_vllm_config().load_config.load_format)
    if given in REFUSED:
        raise MixllmError(f"{prefix}: --load-format {given} can't load mixllm layers; leave it out")
    return given == "dummy"
