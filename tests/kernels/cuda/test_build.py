"""The cache of compiled kernels: one entry for each set of inputs, never half written, and clear errors."""

from __future__ import annotations

import errno
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


@pytest.mark.parametrize("harm", ["file", "read-only", "full", "no home"])
def test_a_cache_that_cannot_be_written_costs_a_warning(
    cache: Path, monkeypatch: pytest.MonkeyPatch, harm: str
) -> None:
    """As in a container with a read-only file system, or for a user whom it does not know."""
    monkeypatch.setattr(build, "_compile", lambda *_: b"code")
    build._warn_of_no_cache.cache_clear()
    if harm == "file":
        (cache / "mixllm").touch()
    elif harm == "read-only":
        monkeypatch.setattr("os.access", lambda *_: False)
    elif harm == "full":

        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(build, "_write", full)
    else:

        def homeless() -> Path:
            raise RuntimeError("Could not determine home directory.")

        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setattr(Path, "home", homeless)
    with pytest.warns(UserWarning, match="kernels cannot be kept .*; set XDG_CACHE_HOME") as said:
        assert [build.cubin("gemm.cu", {}, "sm_80") for _ in range(2)] == [b"code"] * 2
    assert len(said) == 1 and not list(cache.rglob("*.cubin"))


@pytest.mark.parametrize(("capability", "arch"), [((8, 0), "sm_80"), ((9, 0), "sm_90a"), ((12, 0), "sm_120")])
def test_architecture(capability: tuple[int, int], arch: str) -> None:
    assert build.architecture(capability) == arch


def test_without_nvrtc_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    build._compiler_version.cache_clear()
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(MixllmError, match="pip install"):
        build.cubin("gemm.cu", {}, "sm_80")
