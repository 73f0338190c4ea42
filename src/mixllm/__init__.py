"""Mixed-precision LLM quantization between output channels, and the kernels that run the result."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from mixllm.integrations import register as _register
from mixllm.version import __version__

if TYPE_CHECKING:
    from mixllm.config import PROFILES, Format, QuantConfig
    from mixllm.errors import MixllmError
    from mixllm.loading import load
    from mixllm.nn import MixLinear
    from mixllm.pipeline import Summary, quantize
    from mixllm.plan import Plan, Salience, choose
    from mixllm.progress import Progress

# Public names by the module that holds them; loaded at first use, so that importing mixllm is quick.
_HOMES = {
    "Format": "config",
    "PROFILES": "config",
    "QuantConfig": "config",
    "MixllmError": "errors",
    "load": "loading",
    "MixLinear": "nn",
    "Summary": "pipeline",
    "quantize": "pipeline",
    "Plan": "plan",
    "choose": "plan",
    "Salience": "plan",
    "Progress": "progress",
}
__all__ = [
    "PROFILES",
    "Format",
    "MixLinear",
    "MixllmError",
    "Plan",
    "Progress",
    "QuantConfig",
    "Salience",
    "Summary",
    "__version__",
    "choose",
    "load",
    "quantize",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    """What there is to complete a name to, before the names are loaded."""
    return sorted(__all__)


_register()
