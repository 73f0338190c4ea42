"""Every kernel compiles for every architecture without spilling, as the committed report says."""

from __future__ import annotations

import json

import pytest

from tests.kernels.cuda.compiling import LIMITS, REPORT, compile_all, jobs, nvcc_version


@pytest.mark.nvcc
@pytest.mark.parametrize("arch", LIMITS)
def test_ptxas_report(arch: str) -> None:
    report = json.loads(REPORT.read_text())
    expected = report[arch]
    found = compile_all(arch)
    assert found.keys() == expected.keys(), "the report lacks a kernel: see tests/kernels/cuda/compiling.py"
    for name, entry in found.items():
        assert entry["spilled"] <= expected[name]["spilled"], name
        assert entry["shared"] <= LIMITS[arch], name
    if report["nvcc"] == nvcc_version():
        assert found == expected


@pytest.mark.parametrize("arch", LIMITS)
def test_shared_memory_fits(arch: str) -> None:
    assert all(shared <= LIMITS[arch] for _, _, shared in jobs(arch).values())
