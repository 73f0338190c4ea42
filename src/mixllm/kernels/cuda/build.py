"""CUDA C++ -> machine code through NVRTC, once for each machine: a cache on disk that many processes share.

A cubin's name is a hash of all that it is made from (sources, macros, architecture, compiler), so an entry is
never changed: it is written to a temporary name and renamed, and who comes second writes the same bytes.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from mixllm.errors import MixllmError, one_line
from mixllm.files import write_atomically

SOURCES = Path(__file__).with_name("csrc")


def architecture(capability: tuple[int, int]) -> str:
    """The target for a device; sm_90 has instructions of its own that want the suffix."""
    major, minor = capability
    return f"sm_{major}{minor}{'a' if (major, minor) == (9, 0) else ''}"


def options(macros: Mapping[str, int]) -> list[str]:
    """The flags that nvcc and NVRTC share."""
    return ["-std=c++17", *(f"-D{name}={value}" for name, value in sorted(macros.items()))]


def cubin(source: str, macros: Mapping[str, int], arch: str) -> bytes:
    """Machine code of csrc/`source` for these macros; compiled (about half a second) only the first time.

    Where it cannot be kept, as in a container whose file system is read-only, one warning says so, and each
    process compiles. Raises MixllmError where NVRTC is missing (pip install 'mixllm[cuda]') or refuses the
    source.
    """
    name = f"{_digest(source, macros, arch)}.cubin"
    try:
        return (cache_directory() / name).read_bytes()
    except (OSError, RuntimeError):
        code = _compile(source, macros, arch)
    try:
        directory = cache_directory()
        directory.mkdir(parents=True, exist_ok=True)
        write_atomically(directory / name, lambda path: _write(path, code))
    except (OSError, RuntimeError, MixllmError) as error:
        _warn_of_no_cache(one_line(error))
    return code


def cache_directory() -> Path:
    """Where compiled kernels are kept, by the XDG convention. RuntimeError for a user without a home."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mixllm" / "cuda"


@cache
def _warn_of_no_cache(reason: str) -> None:
    warnings.warn(
        f"compiled CUDA kernels cannot be kept ({reason}), so that each process compiles them anew; set "
        "XDG_CACHE_HOME to a directory that can be written",
        stacklevel=2,
    )


def _write(path: Path, code: bytes) -> None:
    path.write_bytes(code)


@cache
def _sources() -> bytes:
    return b"".join(path.name.encode() + path.read_bytes() for path in sorted(SOURCES.iterdir()))


def _digest(source: str, macros: Mapping[str, int], arch: str) -> str:
    key = repr((source, options(macros), arch, _compiler_version())).encode()
    return hashlib.sha256(key + _sources()).hexdigest()[:32]


def require_compiler() -> None:
    """Raises MixllmError where NVRTC is missing."""
    _compiler_version()


@cache
def _compiler_version() -> tuple[int, int]:
    try:
        from cuda.bindings import nvrtc
    except ImportError:
        raise MixllmError("the CUDA backend needs cuda-core and NVRTC: pip install 'mixllm[cuda]'") from None
    _, major, minor = nvrtc.nvrtcVersion()
    return int(major), int(minor)


def _compile(source: str, macros: Mapping[str, int], arch: str) -> bytes:
    from cuda.core import Program, ProgramOptions

    settings = ProgramOptions(
        name=source,
        arch=arch,
        std="c++17",
        include_path=[str(SOURCES)],
        define_macro=[(name, str(value)) for name, value in sorted(macros.items())],
    )
    try:
        code = Program((SOURCES / source).read_text(), "c++", settings).compile("cubin").code
    except Exception as error:  # cuda.core's own error types differ between its versions
        first = next((line for line in str(error).splitlines() if "error" in line), str(error))
        raise MixllmError(f"compiling {source} for {arch}: {first}") from error
    return bytes(code)
