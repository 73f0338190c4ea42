"""vLLM: `vllm serve CHECKPOINT` works once mixllm is installed beside vLLM, with no flag and no patch.

vLLM calls register() in each of its processes, through the entry point group vllm.general_plugins.
"""

from __future__ import annotations

import warnings

# Minor versions of which docs/serving.md says what was run where: dense models, mixtures, several ranks.
TESTED = ("0.26", "0.31", "0.32")


def register() -> None:
    """Make "mixllm" one of vLLM's quantization methods; warns once of a vLLM that was never tested."""
    import vllm

    version: str = vllm.__version__
    if ".".join(version.split(".")[:2]) not in TESTED:
        warnings.warn(
            f"mixllm was tested with vLLM {', '.join(TESTED)}, not with {version}",
            RuntimeWarning,
            stacklevel=2,
        )
    import mixllm.integrations.vllm.config  # noqa: F401  # its import registers
