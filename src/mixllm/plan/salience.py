"""What it costs to store each output channel at each width, in memory and on disk.

The file is one safetensors file: a tensor "<module>/<width>" of [N] losses for every module and width,
and a metadata entry "mixllm_salience" with the rest as JSON. Measured once, it gives a plan for any budget.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mixllm.config import WIDTHS, Format, Rounding, Score, parse
from mixllm.errors import MixllmError, one_line
from mixllm.files import write_atomically
from mixllm.format.config import MOST_INPUTS
from mixllm.records import SALIENCE

_KEY = "mixllm_salience"
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class ModuleSalience:
    """One linear layer [N, K = in_features].

    loss: width in bits -> float [N], the predicted rise of the loss, in nats a token, when this output
    channel alone is stored at that width. Every module of a model has the same widths.
    """

    in_features: int
    loss: dict[int, Tensor]

    @property
    def out_features(self) -> int:
        return next(iter(self.loss.values())).shape[0]


@dataclass(frozen=True)
class Salience:
    """All quantized layers of a model, in model order.

    score, error: how the losses were measured (see mixllm.config.QuantConfig), over `tokens` tokens and
    for rounding to `format`. other_bytes: what the model's tensors that stay as they are take on disk.
    """

    modules: dict[str, ModuleSalience]
    score: Score
    error: Rounding
    tokens: int
    format: Format
    other_bytes: int = 0

    @property
    def widths(self) -> list[int]:
        """The candidate widths, narrowest first."""
        return sorted(next(iter(self.modules.values())).loss) if self.modules else []

    def among(self, widths: Collection[int]) -> Salience:
        """What a choice among these widths only needs; MixllmError for one that was not measured."""
        if missing := sorted(set(widths) - set(self.widths)):
            raise MixllmError(
                f"salience: measured for {', '.join(map(str, self.widths))} bits, not for {missing[0]}; "
                "measure it again with these widths"
            )
        modules = {
            name: replace(module, loss={width: module.loss[width] for width in widths})
            for name, module in self.modules.items()
        }
        return replace(self, modules=modules)

    def save(self, path: str | PathLike[str]) -> None:
        """Write the file at once or not at all."""
        header = _Header(
            score=self.score,
            error=self.error,
            tokens=self.tokens,
            format=self.format,
            other_bytes=self.other_bytes,
            modules={name: module.in_features for name, module in self.modules.items()},
        )
        tensors = {
            f"{name}/{width}": loss.detach().cpu().contiguous()
            for name, module in self.modules.items()
            for width, loss in module.loss.items()
        }
        metadata = {_KEY: header.model_dump_json()}
        write_atomically(Path(path), lambda file: save_file(tensors, file, metadata=metadata))

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Salience:
        """Read and check a file that save() wrote; MixllmError names file, tensor and reason."""
        path = Path(path)
        if path.is_dir():
            raise MixllmError(f"{path}: is a directory; give the salience in it, {path / SALIENCE}")
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        except (OSError, SafetensorError) as error:
            raise MixllmError(f"{path}: not a readable salience file: {one_line(error)}") from None
        if _KEY not in metadata:
            raise MixllmError(f"{path}: a safetensors file, but not a salience file that mixllm wrote")
        try:
            header = parse(_Header, json.loads(metadata[_KEY]), str(path))
        except (ValueError, RecursionError) as error:
            raise MixllmError(f"{path}: metadata {_KEY} is not JSON: {one_line(error)}") from None
        return cls(
            modules=_modules(header, tensors, path),
            score=header.score,
            error=header.error,
            tokens=header.tokens,
            format=header.format,
            other_bytes=header.other_bytes,
        )


class _Header(BaseModel):
    """The metadata entry; modules: name -> in_features, in model order (tensors in a file are sorted)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    score: Score
    error: Rounding
    tokens: int = Field(ge=1)
    format: Format
    other_bytes: int = Field(ge=0)
    modules: dict[str, Annotated[int, Field(ge=1, le=MOST_INPUTS)]] = Field(min_length=1)


def _modules(header: _Header, tensors: dict[str, Tensor], path: Path) -> dict[str, ModuleSalience]:
    losses: dict[str, dict[int, Tensor]] = {name: {} for name in header.modules}
    for key, tensor in tensors.items():
        name, _, width = key.rpartition("/")
        if name not in losses or width not in map(str, WIDTHS):
            raise MixllmError(f"{path}: {key}: no such module and width in a salience file")
        if tensor.dim() != 1 or tensor.dtype not in _FLOATS or not torch.isfinite(tensor).all():
            raise MixllmError(f"{path}: {key}: losses must be a vector of finite numbers; measure it again")
        if not len(tensor):
            raise MixllmError(f"{path}: {key}: holds no output channels; measure it again")
        losses[name][int(width)] = tensor
    widths = {tuple(sorted(loss)) for loss in losses.values()}
    if len(widths) != 1 or () in widths:
        raise MixllmError(f"{path}: the modules differ in their widths; measure it again")
    for name, loss in losses.items():
        if len({tensor.shape for tensor in loss.values()}) != 1:
            raise MixllmError(f"{path}: {name}: the widths differ in their number of output channels")
    return {
        name: ModuleSalience(width, dict(sorted(losses[name].items())))
        for name, width in header.modules.items()
    }
