"""torch operators that cost a plain call where nothing traces them.

Going through torch's dispatcher to a Python function takes about as long as all the rest of a launch: an
engine that runs a few hundred tokens layer by layer, outside a CUDA graph, would wait for the CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

Fake = TypeVar("Fake", bound=Callable[..., Any])


def operator(
    name: str, mutates_args: tuple[str, ...] = ()
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Makes a function of CUDA tensors, the first argument one of them, the operator `name`, as
    torch.library.custom_op does. Where gradients are on, under torch.compile or with a fake tensor a call is
    that operator's, else the function's itself."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        registered = torch.library.custom_op(name, function, mutates_args=mutates_args, device_types="cuda")

        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            plain = type(args[0]) is Tensor and not torch.is_grad_enabled()
            if plain and not torch.compiler.is_compiling():
                return function(*args, **kwargs)
            return registered(*args, **kwargs)

        return call

    return decorate


def fake(name: str) -> Callable[[Fake], Fake]:
    """What the operator `name` gives, shapes and dtypes only."""
    return cast(Callable[[Fake], Fake], torch.library.register_fake(name))
