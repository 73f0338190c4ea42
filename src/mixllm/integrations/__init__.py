"""Other libraries, met only where they are: nothing here imports them.

`import mixllm` must teach transformers to load mixllm checkpoints and yet stay quick, and importing
transformers takes seconds. So transformers is told when, and only if, the program imports it: an entry
in sys.meta_path waits for the module that keeps transformers' table of quantizers, and leaves the list
once it has come (the post-import hook of PEP 369, as wrapt has it). Other quantizers either live inside
transformers (compressed-tensors, auto-round) or import it with their own package (gptqmodel).
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

QUANTIZERS = "transformers.quantizers.auto"
REGISTRATION = "mixllm.integrations.transformers"


def register() -> None:
    """Let transformers load mixllm checkpoints: now if it is imported already, else as soon as it is."""
    if QUANTIZERS in sys.modules:
        importlib.import_module(REGISTRATION)
    elif not any(isinstance(finder, _Watch) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Watch())


class _Watch(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != QUANTIZERS:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _ThenRegister(spec.loader)
        return spec


class _ThenRegister(Loader):
    """Runs a module with its own loader, and the registration after it."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        importlib.import_module(REGISTRATION)
