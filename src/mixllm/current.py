"""The GPU that is the current one while something is launched."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor


def current(x: Tensor) -> AbstractContextManager[Any]:
    """A context in which x's GPU is the current one: Triton launches there, wherever the tensors are.

    For a tensor of the host, as Triton's interpreter takes them, there is none to choose.
    """
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()
