"""Sets of row numbers as a person writes them: "0-3,7,12-20"."""

from __future__ import annotations

import re

import torch
from torch import Tensor

_PART = re.compile(r"(\d+)(?:-(\d+))?")


def write_ranges(rows: Tensor) -> str:
    """Increasing row numbers, int64 [n] -> their ranges; "" for none."""
    if not rows.numel():
        return ""
    breaks = torch.nonzero(rows.diff() != 1)[:, 0]
    starts = rows[torch.cat([torch.zeros(1, dtype=torch.int64), breaks + 1])]
    ends = rows[torch.cat([breaks, torch.tensor([len(rows) - 1])])]
    pairs = zip(starts.tolist(), ends.tolist(), strict=True)
    return ",".join(f"{start}" if start == end else f"{start}-{end}" for start, end in pairs)


def read_ranges(text: str, rows: int) -> Tensor:
    """Ranges -> a mask, bool [rows]. ValueError for bad syntax, a row outside 0..rows-1, or one named twice
    or out of order."""
    mask = torch.zeros(rows, dtype=torch.bool)
    before = -1
    for part in text.split(",") if text else ():
        match = _PART.fullmatch(part.strip())
        if match is None:
            raise ValueError(f'"{part}" is not a row or a range of rows such as 12-20')
        first = int(match[1])
        last = int(match[2] or first)
        if not before < first <= last:
            raise ValueError(f'"{part}" is out of order; rows must increase')
        if last >= rows:
            raise ValueError(f"row {last} is out of range, there are {rows} rows")
        mask[first : last + 1] = True
        before = last
    return mask
