"""GPTQ lowers the layer's output error, treats rows independently and follows the textbook form."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mixllm.config import PROFILES, Format, QuantConfig
from mixllm.errors import MixllmError
from mixllm.format.rounded import Rounded
from mixllm.rotation import rotate
from mixllm.rounding import factor_of, round_rows
from tests import shapes

N, K = 37, 328


@pytest.fixture(scope="module")
def x() -> Tensor:
    mixing = torch.randn(K, K, generator=torch.Generator().manual_seed(1)) * 0.3 + torch.eye(K)
    return shapes.inputs(900, K, 2) @ mixing


def output_error(r: Rounded, w: Tensor, x: Tensor, format: Format) -> float:
    plain = rotate(r.dequantize()) if format.rotation == "hadamard" else r.dequantize()
    return float((x @ (plain - w).T).square().sum() / (x @ w.T).square().sum())


@pytest.mark.parametrize("profile", PROFILES)
def test_each_step_lowers_the_output_error(profile: str, x: Tensor) -> None:
    w, bits = shapes.weight(N, K, 3), shapes.widths(N, 0.2, 4)
    errors = []
    for rounding, clip, order in (("rtn", False, False), ("gptq", False, False), ("gptq", True, True)):
        config = QuantConfig(format=PROFILES[profile], rounding=rounding, clip=clip, order=order, sweeps=0)
        rounded = round_rows(w, bits, config, factor_of(x.T @ x, config, "layer"))
        errors.append(output_error(rounded, w, x, config.format))
    assert errors[1] < 0.6 * errors[0]
    assert errors[2] < errors[1]


def test_clip_alone_lowers_the_weighted_error(x: Tensor) -> None:
    w, bits = shapes.weight(N, K, 3), shapes.widths(N, 0.0, 4)
    diagonal = x.square().sum(0)
    errors = []
    for clip in (False, True):
        config = QuantConfig(format=PROFILES["paper"], rounding="rtn", clip=clip)
        r = round_rows(w, bits, config, factor_of(x.T @ x, config, "layer"))
        errors.append(float((r.dequantize() - w).square() @ diagonal @ torch.ones(N)))
    assert errors[1] < 0.95 * errors[0]


@pytest.mark.parametrize("profile", PROFILES)
def test_rows_do_not_depend_on_their_neighbours(profile: str, x: Tensor) -> None:
    config = QuantConfig(format=PROFILES[profile])
    w, bits = shapes.weight(N, K, 5), shapes.widths(N, 0.4, 6)
    factor = factor_of(x.T @ x, config, "layer")
    together, alone = round_rows(w, bits, config, factor), round_rows(w[7:8], bits[7:8], config, factor)
    # A product's sums may be taken in another order for one row: codes on a border can differ.
    assert float((together.codes[7] != alone.codes[0]).float().mean()) < 0.02


def test_is_textbook_gptq_without_clip_and_order(x: Tensor) -> None:
    """Against the column loop of arXiv 2210.17323 with an explicit inverse, in float64."""
    config = QuantConfig(
        format=Format(weight_scale="row", rotation="none"), clip=False, order=False, sweeps=0
    )
    w, bits = shapes.weight(N, K, 7), shapes.widths(N, 0.3, 8)
    r = round_rows(w, bits, config, factor_of(x.T @ x, config, "layer"))
    h = (x.T @ x).double()
    h += 0.01 * h.diagonal().mean() * torch.eye(K)
    inverse, left = torch.linalg.inv(h), w.double().clone()
    codes = torch.empty(N, K)
    scale, zero = r.scales[:, 0].double(), r.zeros[:, 0].double()
    low, high = torch.where(bits == 4, 0, -127), torch.where(bits == 4, 15, 127)
    for j in range(K):
        code = ((left[:, j] / scale).round() + zero).clamp(low, high)
        codes[:, j] = code
        error = (left[:, j] - (code - zero) * scale) / inverse[j, j]
        left -= error[:, None] * inverse[j]
        inverse = inverse - inverse[:, j : j + 1] @ inverse[j : j + 1] / inverse[j, j]
    assert float((codes != r.codes).float().mean()) < 0.01


def test_dead_inputs_are_rounded_to_nearest(x: Tensor) -> None:
    config = QuantConfig(format=PROFILES["paper"], clip=False, sweeps=0)
    silent = x.clone()
    silent[:, 100:140] = 0
    w, bits = shapes.weight(N, K, 9), shapes.widths(N, 0.2, 1)
    r = round_rows(w, bits, config, factor_of(silent.T @ silent, config, "layer"))
    step = r.scales.repeat_interleave(128, 1)[:, :K]
    assert bool(((r.dequantize() - w).abs() <= 1.01 * step)[:, 128:140].all())


def test_fewer_tokens_than_inputs_still_has_a_factor() -> None:
    config = QuantConfig()
    few = shapes.inputs(5, K, 1)
    r = round_rows(
        shapes.weight(N, K, 2), shapes.widths(N, 0.5, 3), config, factor_of(few.T @ few, config, "l")
    )
    assert bool(torch.isfinite(r.dequantize()).all())


def test_no_input_at_all_is_round_to_nearest() -> None:
    config = QuantConfig(clip=False, sweeps=0)
    w, bits = shapes.weight(N, K, 2), shapes.widths(N, 0.5, 3)
    r = round_rows(w, bits, config, factor_of(torch.zeros(K, K), config, "layer"))
    nearest = round_rows(w, bits, config.model_copy(update={"rounding": "rtn"}), None)
    assert torch.equal(r.codes, nearest.codes)


def test_nan_in_calibration_names_the_layer() -> None:
    h = torch.eye(K)
    h[3, 3] = torch.nan
    with pytest.raises(MixllmError, match=r"model\.layers\.1\.q_proj: calibration gives NaN"):
        factor_of(h, QuantConfig(format=PROFILES["paper"]), "model.layers.1.q_proj")
