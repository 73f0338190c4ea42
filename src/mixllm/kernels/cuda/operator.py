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


def untraced(x: Tensor) -> bool:
    """Whether nobody looks at what is done with x: no gradients, no torch.compile, no fake tensor."""
    return not torch.compiler.is_compiling() and type(x) is Tensor and not torch.is_grad_enabled()


def operator(
    name: str, mutates_args: tuple[str, ...] = ()
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Makes a function of CUDA tensors, the first argument one of them, the operator `name`, as
    torch.library.custom_op does. A call is that operator's where it may be traced, else the function's."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        registered = torch.library.custom_op(name, function, mutates_args=mutates_args, device_types="cuda")

        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            return (function if untraced(args[0]) else registered)(*args, **kwargs)

        return call

    return decorate


def fake(name: str) -> Callable[[Fake], Fake]:
    """What the operator `name` gives, shapes and dtypes only."""
    return cast(Callable[[Fake], Fake], torch.library.register_fake(name))
