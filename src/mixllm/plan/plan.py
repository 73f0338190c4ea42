"""A plan: the width of every output channel, and what it was chosen by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from mixllm.config import KERNEL_WIDTHS, WIDTHS, Format, Rounding, Scope, Score
from mixllm.errors import MixllmError
from mixllm.files import write_atomically
from mixllm.format.config import QuantizedModule
from mixllm.plan.file import FIELDS, Rule, read_file, text_of
from mixllm.plan.module import ModulePlan
from mixllm.records import PLAN


@dataclass(frozen=True)
class Plan:
    """Widths of all quantized layers, in model order, and how they were chosen.

    widths: those that were to choose from. rule, budget, scope, seed: see choose(); score, error: how the
    salience was measured, None for a uniform plan. format: what the salience was measured for, and
    other_bytes: what the tensors that stay as they are take on disk; both serve the report.
    """

    modules: dict[str, ModulePlan]
    rule: Rule
    budget: float
    scope: Scope = "global"
    seed: int = 0
    score: Score | None = None
    error: Rounding | None = None
    widths: tuple[int, ...] = KERNEL_WIDTHS
    format: Format = field(default_factory=Format)
    other_bytes: int = 0

    @classmethod
    def uniform(
        cls, shapes: Mapping[str, tuple[int, int]], width: int, format: Format, other_bytes: int = 0
    ) -> Plan:
        """Every row of layers of these shapes (out_features, in_features) at one width; needs no salience."""
        modules = {
            name: ModulePlan(k, torch.full((n,), width, dtype=torch.uint8)) for name, (n, k) in shapes.items()
        }
        return cls(modules, rule="bits", budget=float(width), format=format, other_bytes=other_bytes)

    def counts(self) -> dict[str, QuantizedModule]:
        """How many rows of each width every module has; all of KERNEL_WIDTHS, others it has."""
        return {
            name: QuantizedModule(
                in_features=module.in_features,
                out_features=module.out_features,
                rows={
                    width: count
                    for width in WIDTHS
                    if (count := int((module.widths == width).sum())) or width in KERNEL_WIDTHS
                },
            )
            for name, module in self.modules.items()
        }

    @property
    def payload_bits(self) -> float:
        """Mean bits a quantized weight, without scales and zeros."""
        modules = self.modules.values()
        bits = sum(int(m.widths.sum(dtype=torch.int64)) * m.in_features for m in modules)
        return bits / sum(m.out_features * m.in_features for m in modules)

    def save(self, path: str | PathLike[str]) -> None:
        """Write the JSON at once or not at all."""
        fields = {name: getattr(self, name) for name in FIELDS} | {"format": self.format.model_dump()}
        counts = [module.rows for module in self.counts().values()]
        totals: dict[str, Any] = {"rows": sum(sum(rows.values()) for rows in counts)}
        totals |= {f"rows{width}": sum(rows.get(width, 0) for rows in counts) for width in self.widths[1:]}
        text = text_of(fields, totals | {"payload_bits": round(self.payload_bits, 6)}, self.modules)

        def write(file: Path) -> None:
            file.write_text(text, encoding="utf-8")

        write_atomically(Path(path), write)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Plan:
        """Read and check a plan; MixllmError names the file, the field or module and the reason."""
        path = Path(path)
        if path.is_dir():
            raise MixllmError(f"{path}: is a directory; give the plan in it, {path / PLAN}")
        file, modules = read_file(path)
        return cls(modules=modules, **{name: getattr(file, name) for name in FIELDS})
