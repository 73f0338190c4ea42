"""From float rows to codes: round to nearest, clip search and GPTQ, each alone or together."""

from __future__ import annotations

import torch
from torch import Tensor

from mixllm.config import GROUP_SIZE, QuantConfig
from mixllm.format.rounded import Rounded, join_rows, rows_at_once
from mixllm.rotation import rotate
from mixllm.rounding.clip import best_grid
from mixllm.rounding.gptq import gptq
from mixllm.rounding.grid import Grid, Grids
from mixllm.rounding.hessian import Factor, factor, rotate_both
from mixllm.rounding.refine import refine


def needs_hessian(config: QuantConfig) -> bool:
    return config.clip or config.rounding == "gptq"


def factor_of(hessian: Tensor, config: QuantConfig, name: str) -> Factor:
    """The factor of a layer's input Hessian in the basis in which its weight is rounded.

    That basis is then the Hessian's too: it is rotated in place where the format rotates.
    """
    h = rotate_both(hessian) if config.format.rotation == "hadamard" else hessian
    return factor(h, order=config.order, damping=config.damping, where=name)


def round_rows(weight: Tensor, bits: Tensor, config: QuantConfig, factor: Factor | None) -> Rounded:
    """Round weight [N, K] to bits uint8 [N] a row; rotates it first if the format does.

    factor: of the (rotated) inputs' Hessian; may be None for plain round to nearest. Rows are independent,
    and so many of them are taken at once that memory stays bounded.
    """
    size = rows_at_once(weight.shape[1])
    parts = zip(weight.split(size), bits.split(size), strict=True)
    return join_rows([_round(part.float(), b, config, factor) for part, b in parts])


def _round(w: Tensor, bits: Tensor, config: QuantConfig, factor: Factor | None) -> Rounded:
    if config.format.rotation == "hadamard":
        w = rotate(w)
    grids = Grids(w, bits, config.format)
    diagonal = torch.ones(w.shape[1], device=w.device) if factor is None else factor.diagonal
    one_scale = config.format.weight_scale == "row"
    fixed = best_grid(grids, w, diagonal, config.clip) if one_scale else None
    if config.rounding == "gptq":
        assert factor is not None
        codes, chosen = gptq(w, grids, factor, clip=config.clip, clip_by=config.clip_by, fixed=fixed)
        codes, chosen = refine(w, codes, chosen, grids, factor, config.sweeps)
    else:
        parts, weights = w.split(GROUP_SIZE, dim=1), diagonal.split(GROUP_SIZE)
        chosen = [fixed or best_grid(grids, p, d, config.clip) for p, d in zip(parts, weights, strict=True)]
        codes = torch.cat([grid.snap(part) for grid, part in zip(chosen, parts, strict=True)], dim=1)
    return _rounded(codes, bits, chosen, grids)


def _rounded(codes: Tensor, bits: Tensor, chosen: list[Grid], grids: Grids) -> Rounded:
    scales = torch.cat([grid.scale for grid in chosen], dim=1)
    multipliers = torch.cat([grid.multiplier for grid in chosen], dim=1)
    row_scales = None
    if grids.kind != "group":
        row_scales = scales[:, :1] / multipliers[:, :1]
        scales = row_scales * multipliers
    return Rounded(
        bits=bits,
        codes=codes.to(torch.int8),
        zeros=torch.cat([grid.zero for grid in chosen], dim=1).to(torch.uint8),
        scales=scales,
        row_scales=None if row_scales is None else row_scales[:, 0],
        multipliers=multipliers.to(torch.uint8) if grids.kind == "group_int" else None,
    )
