"""What linear layers are fed while a model runs, and which of them read the same input."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


@contextmanager
def fed(linears: Mapping[str, nn.Module], see: Callable[[str, Tensor, str | None], None]) -> Iterator[None]:
    """Call see(name, x, before) inside the context whenever one of the linears is fed x.

    before: the linear that was fed the very same tensor last, as q, k and v are; None where x is another than
    any of them was fed last.
    """
    last: dict[str, Any] = {"input": None, "name": ""}

    def hook(name: str) -> Any:
        def run(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0]
            before = last["name"] if x is last["input"] else None
            last["input"], last["name"] = x, name
            see(name, x, before)

        return run

    handles = [linear.register_forward_pre_hook(hook(name)) for name, linear in linears.items()]
    try:
        yield
    finally:
        last.clear()
        for handle in handles:
            handle.remove()
