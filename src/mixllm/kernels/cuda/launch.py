"""Kernels on a device: loaded once, launched on torch's current stream with programmatic dependent launch."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import torch

from mixllm.errors import MixllmError
from mixllm.kernels.cuda.build import architecture, cubin

LEAST_CAPABILITY = (8, 0)

_Parameters = ctypes.c_void_p * 1


@dataclass(frozen=True)
class Device:
    """What a launch must know of a GPU."""

    index: int
    capability: tuple[int, int]
    multiprocessors: int
    shared_limit: int  # bytes a block can have


@cache
def device(index: int) -> Device:
    """Raises MixllmError for a GPU older than sm_80."""
    properties = torch.cuda.get_device_properties(index)
    capability = (properties.major, properties.minor)
    if capability < LEAST_CAPABILITY:
        raise MixllmError(
            f"{properties.name} is sm_{properties.major}{properties.minor}: the CUDA backend needs sm_80 or "
            "newer; choose the reference backend"
        )
    limit = properties.shared_memory_per_block_optin  # type: ignore[attr-defined]  # torch's stub lacks it
    return Device(index, capability, properties.multi_processor_count, limit)


def current_stream(index: int) -> int:
    """The handle of torch's current stream on a GPU, as Triton and torch.compile ask for it."""
    return torch._C._cuda_getCurrentRawStream(index)


class Kernel:
    """One compiled kernel on one device. early: its blocks may come before the kernel before it is done."""

    def __init__(
        self, source: str, name: str, macros: Mapping[str, int], index: int, shared: int, early: bool
    ) -> None:
        try:
            from cuda.bindings import driver
        except ImportError:
            raise MixllmError(
                "the CUDA backend needs cuda-core: pip install 'mixllm[cuda]', or choose backend reference"
            ) from None

        self._driver = driver
        target = device(index)
        torch.cuda.current_stream(index)  # the driver's first call needs a context
        code = cubin(source, macros, architecture(target.capability))
        # A library belongs to no context: the same handle serves every device of this architecture.
        self._library = _checked(driver.cuLibraryLoadData(code, None, None, 0, None, None, 0))
        self._function = _checked(driver.cuLibraryGetKernel(self._library, name.encode()))
        self._target = target
        self._allow(shared)
        # All that an SM can give as shared memory: the next kernel's blocks find room beside this one's.
        attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT
        _checked(driver.cuKernelSetAttribute(attribute, 100 if shared else -1, self._function, index))
        self._handle = driver.CUfunction(int(self._function))
        self._shared = shared
        self._attributes = []
        if early and target.capability >= (9, 0):
            ahead = driver.CUlaunchAttribute()
            ahead.id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
            ahead.value.programmaticStreamSerializationAllowed = 1
            self._attributes = [ahead]

    @cache  # noqa: B019  (a kernel lives as long as the process)
    def blocks_alone(self, peers: int, threads: int) -> int:
        """How many run at one time on its device where each has an SM for itself: whole clusters of `peers`,
        so that SMs which are over in their part of the GPU have none."""
        if peers < 2:
            return self._target.multiprocessors
        driver, config, size = self._driver, self._driver.CUlaunchConfig(), self._driver.CUlaunchAttribute()
        size.id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION
        size.value.clusterDim.x, size.value.clusterDim.y, size.value.clusterDim.z = peers, 1, 1
        config.gridDimX, config.gridDimY, config.gridDimZ = peers, 1, 1
        config.blockDimX, config.blockDimY, config.blockDimZ = threads, 1, 1
        config.sharedMemBytes = self._target.shared_limit
        config.attrs, config.numAttrs = [size], 1
        self._allow(config.sharedMemBytes)
        # The driver answers for the current device, and would know nothing of what another's was allowed.
        with torch.cuda.device(self._target.index):
            return int(_checked(driver.cuOccupancyMaxActiveClusters(self._handle, config))) * peers

    def _allow(self, shared: int) -> None:
        attribute = self._driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        _checked(self._driver.cuKernelSetAttribute(attribute, shared, self._function, self._target.index))

    @lru_cache(4096)  # noqa: B019  (see above)
    def _config(self, blocks: int, threads: int, columns: int, stream: int) -> Any:
        """Never changed after, since threads share it."""
        config = self._driver.CUlaunchConfig()
        config.gridDimX, config.gridDimY, config.gridDimZ = blocks, columns, 1
        config.blockDimX, config.blockDimY, config.blockDimZ = threads, 1, 1
        config.sharedMemBytes = self._shared
        config.hStream = stream
        config.attrs, config.numAttrs = self._attributes, len(self._attributes)
        return config

    def launch(self, blocks: int, threads: int, arguments: ctypes.Structure, columns: int = 1) -> None:
        """Enqueue blocks x columns on the current stream of its device, which is the current one. arguments:
        the kernel's one parameter."""
        config = self._config(blocks, threads, columns, current_stream(self._target.index))
        parameters = _Parameters(ctypes.addressof(arguments))
        _checked(self._driver.cuLaunchKernelEx(config, self._handle, ctypes.addressof(parameters), 0))
        if (kept := getattr(_KEPT, "launches", None)) is not None:
            kept.append(Launch(self, blocks, threads, arguments, columns))


@dataclass(frozen=True)
class Launch:
    """A launch as it was made."""

    kernel: Kernel
    blocks: int
    threads: int
    arguments: ctypes.Structure
    columns: int

    def repeat(self, arguments: ctypes.Structure) -> None:
        """The same with other arguments."""
        self.kernel.launch(self.blocks, self.threads, arguments, self.columns)


_KEPT = threading.local()


@contextmanager
def recorded() -> Iterator[list[Launch]]:
    """Collects the launches that this thread makes."""
    _KEPT.launches = []
    try:
        yield _KEPT.launches
    finally:
        _KEPT.launches = None


@cache
def kernel(
    source: str,
    name: str,
    macros: tuple[tuple[str, int], ...],
    index: int,
    shared: int = 0,
    early: bool = True,
) -> Kernel:
    return Kernel(source, name, dict(macros), index, shared, early)


def _checked(result: tuple[Any, ...]) -> Any:
    if int(result[0]) != 0:
        raise RuntimeError(f"CUDA driver: {result[0]!r}")
    return result[1] if len(result) > 1 else None
