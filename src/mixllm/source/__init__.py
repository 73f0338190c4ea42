"""The model to be quantized: a local directory, a name on the hub or a GGUF file."""

from __future__ import annotations

from mixllm.errors import MixllmError
from mixllm.files import at_home, require_link, require_utf8
from mixllm.source.files import is_gguf
from mixllm.source.local import Source

__all__ = ["Source", "is_gguf", "open_source"]


def open_source(model: str) -> Source:
    """Open `model`: a directory with config.json and safetensors, a .gguf file, or a hub name.

    A GGUF file is converted once (see mixllm.source.converted).
    Raises MixllmError, one line, for whatever cannot be opened as a causal language model.
    """
    if not model:
        raise MixllmError("MODEL: is empty; give a model's directory, a .gguf file or a hub name")
    path = at_home(model)
    require_utf8(path)
    require_link(path)
    if path.is_dir():
        return Source(path)
    if is_gguf(path):
        from mixllm.source.converted import converted

        return Source(converted(path))
    if path.exists():
        raise MixllmError(f"{model}: is a file; give a model's directory, a .gguf file or a hub name")
    from mixllm.source.hub import download

    return Source(download(model))
