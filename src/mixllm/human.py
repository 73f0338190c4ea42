"""Sizes and times as a person says them."""

from __future__ import annotations

GIGABYTE, MEGABYTE = 10**9, 10**6


def size(count: float) -> str:
    """Of bytes: 98.1 MB, 4.87 GB."""
    return f"{count / GIGABYTE:.2f} GB" if count >= GIGABYTE else f"{count / MEGABYTE:.1f} MB"


def duration(seconds: float) -> str:
    """45 s, 7 min, 2 h 5 min."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
