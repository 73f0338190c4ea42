"""The cache of compiled kernels: one entry for each set of inputs, never half written, and clear errors."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from mixllm.errors import MixllmError
from mixllm.kernels.cuda import build


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(build, "_compiler_version", lambda: (13, 0))
    return tmp_path


def test_compiled_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def compile(source: str, macros: dict[str, int], arch: str) -> bytes:
        calls.append(arch)
        return arch.encode()

    monkeypatch.setattr(build, "_compile", compile)
    for _ in range(2):
        assert build.cubin("gemm.cu", {"BM": 64}, "sm_80") == b"sm_80"
        assert build.cubin("gemm.cu", {"BM": 64}, "sm_90a") == b"sm_90a"
    assert calls == ["sm_80", "sm_90a"]
    assert len(list(cache.rglob("*.cubin"))) == 2
    build.cubin("gemm.cu", {"BM": 128}, "sm_80")
    build.cubin("decode.cu", {"BM": 64}, "sm_80")
    assert len(list(cache.rglob("*"))) == 2 + 4, "two directories, four entries, nothing temporary"


@pytest.mark.parametrize(("capability", "arch"), [((8, 0), "sm_80"), ((9, 0), "sm_90a"), ((12, 0), "sm_120")])
def test_architecture(capability: tuple[int, int], arch: str) -> None:
    assert build.architecture(capability) == arch


def test_without_nvrtc_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    build._compiler_version.cache_clear()
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(MixllmError, match="pip install"):
        build.cubin("gemm.cu", {}, "sm_80")
