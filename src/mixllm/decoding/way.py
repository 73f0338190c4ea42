"""The short way in front of a decoder's own forward."""

from __future__ import annotations

import inspect
import warnings
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn
from transformers import DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPast

from mixllm.decoding.compare import Watched, difference
from mixllm.decoding.head import ShortHead
from mixllm.decoding.structure import Structure, is_watched, looks_like_llama
from mixllm.decoding.usual import CACHE_NAMES, Step, usual_step
from mixllm.kernels import cpu
from mixllm.kernels.cpu.decoder import Kept

FIELDS = inspect.signature(BaseModelOutputWithPast).parameters
OUTPUT_CACHE = next(name for name in CACHE_NAMES if name in FIELDS)


def install(model: Any) -> None:
    """Let the model's decoder and head take short ways where they can; nothing where they never could."""
    if not cpu.available() or not hasattr(model, "get_decoder"):
        return
    decoder = model.get_decoder()
    if looks_like_llama(decoder) and "forward" not in vars(decoder):
        vars(decoder)["forward"] = ShortWay(decoder).forward
        head = model.get_output_embeddings()
        if type(head) is nn.Linear and head.bias is None and "forward" not in vars(head):
            vars(head)["forward"] = ShortHead(head).forward


class ShortWay:
    """Stands where a decoder's forward did."""

    def __init__(self, decoder: nn.Module) -> None:
        self.__setstate__({"decoder": decoder})

    def __getstate__(self) -> dict[str, object]:
        """For copies and pickles: addresses hold for one object."""
        return {"decoder": self.decoder}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.decoder: Any = state["decoder"]
        self.structure: Structure | None = None
        self.closed = False
        self.caches: WeakKeyDictionary[DynamicCache, Kept] = WeakKeyDictionary()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the decoder's own."""
        step = None if args or self.closed else usual_step(self.decoder, kwargs)
        if step is None:
            return self._own(*args, **kwargs)
        structure = self.structure
        if structure is None or not structure.holds():
            return self._compare(step, kwargs)
        kept = self._kept(step)
        y = structure.decoder.run(step.x, *self._turns(step), kept)
        tensors = kept.grow(step.x.shape[1])
        for layer, keys, values in zip(step.layers, tensors[0::2], tensors[1::2], strict=True):
            layer.keys, layer.values = keys, values
        cache: dict[str, Any] = {OUTPUT_CACHE: step.cache}
        return BaseModelOutputWithPast(last_hidden_state=y, **cache)

    def _own(self, *args: Any, **kwargs: Any) -> Any:
        return type(self.decoder).forward(self.decoder, *args, **kwargs)

    def _turns(self, step: Step) -> tuple[Tensor, Tensor]:
        cos, sin = self.decoder.rotary_emb(step.x, step.positions)
        return cos, sin

    def _kept(self, step: Step) -> Kept:
        """The cache's memory with room; made anew where somebody else wrote the cache since."""
        now, kept = step.tensors(), self.caches.get(step.cache)
        if kept is None or not kept.has_room(step.x.shape[1]) or not kept.holds(now):
            kept = self.caches[step.cache] = Kept(now)
        return kept

    def _compare(self, step: Step, kwargs: dict[str, Any]) -> Any:
        """Take both ways and give what the model's own code says."""
        self.structure = None
        if is_watched(self.decoder.layers.modules()):
            return self._own(**kwargs)
        try:
            structure = Structure(self.decoder, step.x.dtype)
        except (AttributeError, ValueError):
            self.closed = True
            return self._own(**kwargs)
        kept, turns = Kept(step.tensors()), self._turns(step)
        with Watched(self.decoder.layers) as watched:
            result = self._own(**kwargs)
        where = difference(structure.decoder, step, turns, kept, watched, result.last_hidden_state)
        if where is None:
            self.structure = structure
        else:
            self.closed = True
            warnings.warn(
                f"{type(self.decoder).__name__}: the CPU kernels for decoding differ from the model's own "
                f"code in {where}; its own code runs, several times slower",
                stacklevel=2,
            )
        return result
