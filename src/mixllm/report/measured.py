"""Models measured side by side on one text, as the report, the comparison and the model card show them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pydantic import BaseModel, ConfigDict
from torch import Tensor

from mixllm.evaluate import REFERENCE, Measurement, mean_and_error, paired_difference


class Row(BaseModel):
    """One model. Errors are standard errors over windows, None for a single window.

    payload_bits: codes alone; bits: all that is stored for a quantized weight; None where unknown.
    bytes: of its safetensors files. perplexity_error: of its distance from the float model's, paired; of the
    float model's own. kl: KL(float || model), nats a token. top1: share of tokens with the float model's
    most likely token. nll_difference: from the float model, nats a token, paired.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    payload_bits: float | None
    bits: float | None
    bytes: int | None
    perplexity: float
    perplexity_error: float | None
    kl: float
    kl_error: float | None
    top1: float
    top1_error: float | None
    nll_difference: float
    nll_difference_error: float | None


class Difference(BaseModel):
    """`model` minus `against` in NLL and KL, nats a token, paired over windows."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    against: str
    nll: float
    nll_error: float | None
    kl: float
    kl_error: float | None


class Measured(BaseModel):
    """Rows, the float model first, on `windows` windows of `window` tokens of `text`; how, and when (UTC).

    differences: of the second and later quantized models from the first.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    text: str
    window: int
    windows: int
    device: str
    date: str
    versions: dict[str, str]
    rows: list[Row]
    differences: list[Difference]


class Size(BaseModel):
    """What a model takes; see Row."""

    payload_bits: float | None = None
    bits: float | None = None
    bytes: int | None = None


def rows(measured: Mapping[str, Measurement], sizes: Mapping[str, Size]) -> list[Row]:
    """A row a model, in order; REFERENCE is among them."""
    reference = measured[REFERENCE]
    return [_row(name, found, reference, sizes[name]) for name, found in measured.items()]


def differences(measured: Mapping[str, Measurement]) -> list[Difference]:
    """Each quantized model against the first."""
    first, *others = (name for name in measured if name != REFERENCE)
    return [_difference(name, first, measured[name], measured[first]) for name in others]


def known(values: Iterable[float]) -> tuple[float | None, ...]:
    """None for the NaN that an error of one window is: JSON has no NaN."""
    return tuple(None if value != value else value for value in values)


def _row(name: str, found: Measurement, reference: Measurement, size: Size) -> Row:
    difference, error = paired_difference(found.nll, reference.nll)
    # To first order: d exp(nll) = exp(nll) d nll.
    own = found.perplexity_error if found is reference else found.perplexity * error
    (kl, kl_error), (top1, top1_error) = mean_and_error(found.kl), mean_and_error(found.top1)
    perplexity_error, kl_error_, top1_error_, error_ = known((own, kl_error, top1_error, error))
    return Row(
        name=name,
        **size.model_dump(),
        perplexity=found.perplexity,
        perplexity_error=perplexity_error,
        kl=kl,
        kl_error=kl_error_,
        top1=top1,
        top1_error=top1_error_,
        nll_difference=difference,
        nll_difference_error=error_,
    )


def _difference(name: str, first: str, a: Measurement, b: Measurement) -> Difference:
    def paired(x: Tensor, y: Tensor) -> tuple[float, float | None]:
        mean, error = paired_difference(x, y)
        return mean, known([error])[0]

    (nll, nll_error), (kl, kl_error) = paired(a.nll, b.nll), paired(a.kl, b.kl)
    return Difference(model=name, against=first, nll=nll, nll_error=nll_error, kl=kl, kl_error=kl_error)
