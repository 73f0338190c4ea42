"""Measuring models against the float one: perplexity, KL divergence and top-1 agreement.

Perplexity as GPTQ's papers do it (arXiv 2210.17323): rows joined with blank lines, consecutive windows,
exp of the mean NLL over the length - 1 predicted tokens of each window. All models see the same
windows, so a difference between two of them has a paired standard error, far below either's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mixllm.errors import MixllmError

REFERENCE = "float"

# Nats; e to the power of more is no float. A broken model can have it.
MOST_NLL = 709.0
# Tokens whose probabilities over the vocabulary are there at once, twice, in float32.
TOKENS_AT_ONCE = 128


@dataclass(frozen=True)
class Measurement:
    """One model on every window; means over the predicted tokens of a window, float64 [windows].

    nll: negative log-likelihood in nats a token. kl: KL(float || model) in nats a token.
    top1: share of tokens where the model's most likely next token is the float model's.
    """

    nll: Tensor
    kl: Tensor
    top1: Tensor

    @property
    def perplexity(self) -> float:
        """exp of the mean NLL; infinite where that is more than a float holds."""
        mean = float(self.nll.mean())
        return math.inf if mean > MOST_NLL else math.exp(mean)

    @property
    def perplexity_error(self) -> float:
        """The standard error of the perplexity over windows, to first order in that of the NLL."""
        return self.perplexity * mean_and_error(self.nll)[1]

    def to_json(self) -> dict[str, Any]:
        """Means and standard errors over windows (null for a single window), by their names with "_error".

        What is not finite is null too: JSON has no number for it.
        """
        means: dict[str, float] = {"windows": len(self.nll), "perplexity": self.perplexity}
        means["perplexity_error"] = self.perplexity_error
        for name in ("nll", "kl", "top1"):
            means[name], means[f"{name}_error"] = mean_and_error(getattr(self, name))
        return {name: value if math.isfinite(value) else None for name, value in means.items()}


def mean_and_error(values: Tensor) -> tuple[float, float]:
    """The mean of independent values [n] and its standard error, NaN for n = 1."""
    mean = float(values.double().mean())
    return mean, float(values.double().std()) / math.sqrt(len(values)) if len(values) > 1 else math.nan


def paired_difference(a: Tensor, b: Tensor) -> tuple[float, float]:
    """Mean and standard error of a - b over windows [n] that both saw."""
    return mean_and_error(a.double() - b.double())


@torch.no_grad()
def measure(
    models: Mapping[str, nn.Module],
    reference: nn.Module,
    windows: Tensor,
    progress: Callable[[int, int], None] | None = None,
    *,
    batch: int = 1,
) -> dict[str, Measurement]:
    """Run every window int64 [n, length] through the reference and the models side by side.

    models: causal language models by name; reference: the float model, reported as "float". batch:
    windows that go through a model at once; their logits, the reference's and one model's, are there
    at a time. Logits become float32. progress is called with (windows done, windows).
    Returns name -> Measurement, the reference first. MixllmError for a model of another vocabulary.
    """
    for name, model in models.items():
        own, theirs = (_vocabulary(m) for m in (model, reference))
        if own != theirs:
            raise MixllmError(
                f"{name}: it knows {own:,} tokens and the float model {theirs:,}; give the one it was made of"
            )
    sums: dict[str, list[Tensor]] = {name: [] for name in (REFERENCE, *models)}
    for ids in windows.split(batch):
        target = _logits(reference, ids)
        sums[REFERENCE] += _compare_all(target, target, ids)
        for name, model in models.items():
            sums[name] += _compare_all(_logits(model, ids).to(target.device), target, ids)
        if progress is not None:
            progress(len(sums[REFERENCE]), len(windows))
    return {name: Measurement(*torch.stack(rows, dim=1)) for name, rows in sums.items()}


def _vocabulary(model: Any) -> int:
    return int(model.get_input_embeddings().weight.shape[0])


def _logits(model: nn.Module, ids: Tensor) -> Tensor:
    """Logits [B, length - 1, V] of the predicted tokens of windows [B, length]."""
    device = next(model.parameters()).device
    logits: Tensor = model(input_ids=ids.to(device), use_cache=False).logits
    return logits[:, :-1]


def _compare_all(logits: Tensor, target: Tensor, ids: Tensor) -> list[Tensor]:
    return [_compare(*window) for window in zip(logits, target, ids, strict=True)]


def _compare(logits: Tensor, target: Tensor, ids: Tensor) -> Tensor:
    """Means over tokens of NLL, KL(target || logits) and top-1 agreement: float64 [3]."""
    total = torch.zeros(3, dtype=torch.float64, device=logits.device)
    for start in range(0, len(logits), TOKENS_AT_ONCE):
        part, wanted = logits[start : start + TOKENS_AT_ONCE], target[start : start + TOKENS_AT_ONCE]
        following = ids[1 + start : 1 + start + len(part)]
        q, p = part.float().log_softmax(dim=-1), wanted.float().log_softmax(dim=-1)
        nll = -q.gather(1, following[:, None].to(q.device)).sum()
        kl = (p.exp() * (p - q)).sum()
        same = (part.argmax(dim=-1) == wanted.argmax(dim=-1)).sum()
        total += torch.stack([nll.double(), kl.double(), same.double()])
    return total.cpu() / (len(ids) - 1)
