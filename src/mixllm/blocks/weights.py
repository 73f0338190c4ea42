"""Tensors on their way from a source's files into modules, and out of memory again."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

from mixllm.errors import MixllmError
from mixllm.format.shards import FLOATS
from mixllm.names import in_files
from mixllm.source import Source

# A module, an attribute of it, and the parameter that stood there.
Place = tuple[nn.Module, str, nn.Parameter]


def read(
    module: nn.Module, prefix: str, source: Source, bring: Callable[[Tensor], Tensor], skip: str = ""
) -> dict[str, Tensor]:
    """A module's parameters and stored buffers from the source, in the module's dtypes.

    prefix: the module's full name. bring: copies a tensor to where the module runs (changed in the source's
    own mapping, it would come back changed at the next read). skip: full name of a submodule to leave alone.
    What the source lacks is left out. Raises MixllmError for a tensor of a wrong shape or dtype, or not
    finite.
    """
    found: dict[str, Tensor] = {}
    for owner, leaf, name in _places(module, prefix, skip):
        stored = in_files(name, source)
        if stored in source:
            like = getattr(owner, leaf)
            found[name] = _read(source, stored, like, bring).to(like.dtype)
    return found


def place(module: nn.Module, prefix: str, tensors: dict[str, Tensor]) -> list[Place]:
    """Put what `read` gave into the module; returns where the parameters were, for unload."""
    old: list[Place] = []
    for owner, leaf, name in list(_places(module, prefix, "")):
        if name in tensors:
            before = getattr(owner, leaf)
            if isinstance(before, nn.Parameter):
                old.append((owner, leaf, before))
                setattr(owner, leaf, nn.Parameter(tensors[name], requires_grad=False))
            else:
                setattr(owner, leaf, tensors[name])
    return old


def unload(places: list[Place]) -> None:
    """Put back the parameters that load replaced."""
    for owner, leaf, old in places:
        setattr(owner, leaf, old)


def require_whole(module: nn.Module, prefix: str, source: Source, skip: str = "") -> None:
    """Raise MixllmError naming the first parameter that is still on meta."""
    for owner, leaf, name in _places(module, prefix, skip):
        if getattr(owner, leaf).is_meta:
            raise MixllmError(
                f"{source.path}: tensor {name} is missing; config.json is not theirs, or they have a name "
                "for it that mixllm does not know"
            )


def require_no_more(model: Any, prefix: str, blocks: int, source: Source) -> None:
    """Raise MixllmError for a tensor of a block after the last that the config has, unless the model's code
    is known to leave it out; the checkpoint would hold it, and no model would load it."""
    ignored = model._keys_to_ignore_on_load_unexpected or ()
    for name in source.names:
        number = re.match(rf"{re.escape(prefix)}\.(\d+)\.", name)
        if number and int(number[1]) >= blocks and not any(re.search(pattern, name) for pattern in ignored):
            raise MixllmError(
                f"{source.path}: tensor {name}: beyond the blocks of config.json ({blocks}); it is not theirs"
            )


def tie(model: Any, source: Source) -> None:
    """Share embeddings and head where the config ties them and only one of them is stored."""
    ends = [end for end in (model.get_input_embeddings(), model.get_output_embeddings()) if end is not None]
    real = [end.weight for end in ends if not end.weight.is_meta]
    if real and source.config.get_text_config().tie_word_embeddings:
        for end in ends:
            if end.weight.is_meta:
                end.weight = real[0]


def _places(module: nn.Module, prefix: str, skip: str) -> Iterator[tuple[nn.Module, str, str]]:
    """(owner, attribute, full name) of every parameter and stored buffer."""
    stored = module.state_dict()
    for path, owner in module.named_modules():
        own_tensors = (*owner.named_parameters(recurse=False), *owner.named_buffers(recurse=False))
        for leaf, _ in own_tensors:
            inner = f"{path}.{leaf}" if path else leaf
            name = f"{prefix}.{inner}" if prefix else inner
            if inner in stored and not (skip and name.startswith(skip + ".")):
                yield owner, leaf, name


def _read(source: Source, name: str, like: Tensor, bring: Callable[[Tensor], Tensor]) -> Tensor:
    tensor = source.tensor(name, bring)
    if like.is_floating_point() and tensor.dtype not in FLOATS:
        raise MixllmError(f"{source.path}: tensor {name} is {tensor.dtype}; give floats of 16 or 32 bits")
    if tensor.shape != like.shape:
        shapes = f"{list(tensor.shape)}, but config.json needs {list(like.shape)}"
        raise MixllmError(f"{source.path}: tensor {name} is {shapes}")
    return tensor
