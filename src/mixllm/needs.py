"""What a run takes of memory, known from shapes alone, and what that leaves for the states between blocks.

The run and --dry-run ask here, so that the one does what the other said. Each count is of a moment at which
much is alive at once; benchmarks/quantize.py prints what was told beside what was measured.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import psutil
import torch

from mixllm.blocks.losses import LOGITS_AT_ONCE
from mixllm.blocks.room import Room, passes_again, stretches, stretches_that_fit
from mixllm.blocks.upload import STAGED
from mixllm.config import Rounding
from mixllm.errors import MixllmError
from mixllm.format.config import EXPERT
from mixllm.format.rounded import ELEMENTS_AT_ONCE
from mixllm.memory import host_bytes
from mixllm.ranks import here
from mixllm.salience.waiting import waiting_bytes
from mixllm.tuning.tune import WINDOWS

# States are given no more room than up to this, nor than a share of what is free when the run starts; on the
# host, where they would have to go to files otherwise, up to another share of what is free.
MOST_DEVICE, MOST_HOST, SHARE, SHARE_FOR_STATES = 22 * 10**9, 14 * 10**9, 0.9, 0.5
# What torch's allocator may hold of the device, over what tensors are given.
RESERVED = 1.04
# Python, torch, transformers, a tokenizer and text before any weight; what CUDA and copies to it add to that
# in host memory, and NCCL where there are several processes.
BASE_HOST, CUDA_HOST, NCCL_HOST = 450 * 10**6, 1000 * 10**6 + STAGED, 350 * 10**6
# What malloc holds, on a CPU, of pieces too small to be given back to the system.
HELD = 64 * 10**6
# Enough for full matrix products on each; fewer where memory is short. On a CPU no more, so that what a block
# makes of them comes from memory that the process has (see mixllm.blocks.losses.LOGITS_AT_ONCE).
TOKENS_AT_ONCE = {"cuda": 16_384, "cpu": 1_024}
# Float32 copies of the rows that are being rounded.
COPIES = 8


@dataclass(frozen=True)
class Sizes:
    """Of a model: (out, in) of the linear layers of each block by name, features of a hidden state, tokens
    it knows, parameters outside the blocks, shared ones once, the share of its experts that a token meets,
    heads of its attention."""

    blocks: Sequence[dict[str, tuple[int, int]]]
    hidden: int
    vocabulary: int
    ends: int
    routed: float = 1.0
    heads: int = 0

    @property
    def weights(self) -> int:
        return sum(n * k for block in self.blocks for n, k in block.values())

    @property
    def hessians(self) -> list[int]:
        """K of every Hessian [K, K]; layers of one module with one K nearly always share their input."""
        return [k for block in self.blocks for _, k in _inputs(block)]

    @property
    def met(self) -> float:
        """Weights that a token meets."""
        return sum(n * k * self.share(name) for block in self.blocks for name, (n, k) in block.items())

    @property
    def hessians_met(self) -> float:
        """K^2 of every Hessian that a token adds to."""
        return sum(k * k * self.share(name) for block in self.blocks for name, k in _inputs(block))

    def share(self, name: str) -> float:
        """Of all tokens, those that a layer sees."""
        return self.routed if EXPERT.search(name) else 1.0


@dataclass(frozen=True)
class Needs:
    """What a run takes: `batch` tokens go through a block at once; device, host, temporary: bytes at their
    peaks, on the GPU (0 without one), in host memory beyond the page cache, and in temporary files.
    room: for states, of which `temporary` are those that find none in memory. again: the blocks that salience
    goes through once more, for states or Hessians that had no room to wait."""

    batch: int
    device: int
    host: int
    temporary: int
    room: Room
    again: int = 0


def needs(
    sizes: Sizes,
    tokens: int,
    window: int,
    device: torch.device,
    dtype: torch.dtype,
    *,
    measured: Collection[int],
    error: Rounding = "gptq",
) -> Needs:
    """tokens: of the calibration text that this process takes, in windows of `window`.

    measured: the widths at which the run measures salience, none where it does not; error: of which rounding.
    Raises MixllmError where one block and one window do not fit.
    """
    gpu, free, bound = device.type == "cuda", _free(), _bound(device)
    candidates = len(measured)
    most = min(tokens, TOKENS_AT_ONCE["cuda" if gpu else "cpu"])
    if gpu:
        _, total = torch.cuda.mem_get_info(device)
    else:
        total = psutil.virtual_memory().total // here()
    # By what the machine has, not what is free: in batches of another size, sums differ in their last bits.
    comfortable = min(MOST_DEVICE, SHARE * total) if gpu else SHARE**2 * total
    batch = max(window, most // window * window)
    working = _working(sizes, batch, dtype, device.type, candidates)
    while working > comfortable and batch > window:
        fewer = max(window, batch // 2 // window * window)
        less = _working(sizes, fewer, dtype, device.type, candidates)
        if less == working:  # it is not the batch that takes the most
            break
        batch, working = fewer, less
    if gpu:
        bound = min(bound, max(MOST_DEVICE, working))
    if working > bound:
        raise MixllmError(
            f"device: one block and one window of {window} tokens take {working / 1e9:.1f} GB, "
            f"{bound / 1e9:.1f} GB can be had on {device}; give a smaller --window or another --device"
        )
    boundary, blocks = tokens * sizes.hidden * dtype.itemsize, len(sizes.blocks)
    weights = [sum(n * k for n, k in block.values()) for block in sizes.blocks]
    beside = max(waiting_bytes(count, measured, error) for count in weights)

    def waiting(room: Room) -> int:
        """States or gradients on their way, and what waits for the way back: boundaries, and candidates of
        all blocks or of a stretch of them."""
        if not measured:
            return boundary
        cut, leaving = stretches_that_fit(blocks, room, boundary, beside)
        return (1 + len(cut)) * boundary + leaving * beside

    room = Room(bound - working, soon=boundary, reserved=int(RESERVED * bound))
    # What stays free of the GPU's room, since none of what waits fits in there.
    pieces = beside + 2 * batch * sizes.hidden * dtype.itemsize
    other = BASE_HOST + (_cuda_host() if gpu else HELD + working)
    # Where the GPU holds all of them, no memory of the host is pinned, which takes longer than a walk.
    if gpu and waiting(room) > room.device:
        # The fewest states do.
        fewest = len(stretches(blocks, 0)) if measured else 0
        least = (1 + fewest) * boundary + max(0, fewest - 1) * beside
        most = min(MOST_HOST, int(SHARE * free)) - other
        if (wanted := least - room.device + pieces) > most:
            wanted = max(most, min(waiting(room) - room.device, int(SHARE_FOR_STATES * free) - other))
        room = replace(room, host=max(0, wanted))
    states = waiting(room)
    on_device = min(room.device, states)
    on_host = min(states - on_device, room.host)
    cut, leaving = stretches_that_fit(blocks, room, boundary, beside) if measured else ([], 0)
    # Where the first stretch has as many blocks as there are stretches, its candidates come beside as many
    # boundaries as there ever are, and the pieces show; elsewhere some boundaries have gone by then.
    held = min(room.host, on_host + pieces) if leaving and leaving + 1 == len(cut) else on_host
    found = Needs(
        batch=batch,
        device=working + on_device if gpu else 0,
        host=other + (held if gpu else on_device) + (0 if measured else _leaving(sizes)),
        temporary=states - on_device - on_host,
        room=room,
    )
    if not measured:
        return found
    # The whole run's: rounding comes after it.
    after = needs(sizes, tokens, window, device, dtype, measured=())
    return replace(
        found,
        device=max(found.device, after.device),
        host=max(found.host, after.host),
        temporary=max(found.temporary, after.temporary),
        again=passes_again(cut, leaving, seen=error == "gptq"),
    )


def tuning_needs(
    sizes: Sizes, samples: int, window: int, device: torch.device, dtype: torch.dtype, codes: bool = False
) -> tuple[int, int]:
    """Bytes that tuning takes at its peak, on the GPU (0 without one) and in host memory.

    Where the model runs: what scales multiply, a byte a weight, or, where codes are tuned, their places and
    Adam's two moments in float32; what is outside the blocks; the boundary states of a step; and the logits
    of a part of it or one block's way back, whichever is more. Before that, where it is more: the float
    model's states of all windows and two of its blocks. On the host: its last states, and the layers as they
    were rounded; where codes are tuned, as they become too.
    Raises MixllmError where that is more than can be had: all layers are there at once.
    """
    size, windows = dtype.itemsize, min(WINDOWS, samples)
    state, ends = window * sizes.hidden * size, sizes.ends * size
    back = max(way_back(block, sizes, windows * window, size, codes) for block in sizes.blocks)
    if device.type == "cuda" and dtype == torch.float32:
        # Attention that torch has no quick kernel for: whole scores, their softmax and its gradient.
        back += 3 * windows * sizes.heads * window**2 * size
    working = (12 if codes else 1) * sizes.weights + ends + (len(sizes.blocks) + 4) * windows * state
    # Logits, or their gradient, beside the softmax of these and of the float model's.
    working += max(12 * min(LOGITS_AT_ONCE[device.type], windows * window * sizes.vocabulary), back)
    targets, layers = samples * state, (1 + codes) * sizes.weights
    if device.type == "cuda":
        block = max(sum(n * k for n, k in block.values()) for block in sizes.blocks)
        working = max(working, targets + 2 * block * size + ends)
    if working > (bound := _bound(device)):
        raise MixllmError(
            f"tune: all rounded layers take {working / 1e9:.1f} GB, {bound / 1e9:.1f} GB can be had on "
            f"{device}; leave --tune out or give another --device"
        )
    if device.type == "cuda":
        return working, BASE_HOST + _cuda_host() + targets + layers
    # A block's way back leaves holes in what malloc holds that the next block's does not fill: with codes
    # up to as much again, from run to run more or less.
    return 0, BASE_HOST + HELD + (1 + codes) * back // 2 + working + targets + layers


def way_back(block: dict[str, tuple[int, int]], sizes: Sizes, tokens: int, size: int, codes: bool) -> int:
    """Bytes that a block of tuned layers takes to be run and go back, beside its parameters.

    For its tokens, what linear layers, norms and attention keep, and the widest input on its way to int8 in
    float32, thrice, and twice more where it comes in another type; of its weights themselves, with codes
    their multipliers spread and places' gradients, and a float32 copy of the largest layer's.
    """
    weights, wide = [n * k for n, k in block.values()], max(k for _, k in block.values())
    copies = 3 + 2 * (size < 4)
    token = int(size * (_widths(block, sizes) + 4 * sizes.hidden)) + 16 * sizes.hidden + 4 * copies * wide
    return tokens * token + (size + 8 * codes) * sum(weights) + 4 * max(weights)


def _widths(block: dict[str, tuple[int, int]], sizes: Sizes) -> float:
    """Values a token of the outputs of all layers, their gradients, and the inputs."""
    out = sum(n * sizes.share(name) for name, (n, _) in block.items())
    return 2 * out + sum(k * sizes.share(name) for name, k in _inputs(block))


def _free() -> int:
    """Bytes of host memory that this process may have; what it holds already is its to use."""
    return int(psutil.virtual_memory().available // here() + host_bytes())


def _cuda_host() -> int:
    """Bytes of host memory that CUDA takes in this process."""
    return CUDA_HOST + NCCL_HOST * (here() > 1)


def _bound(device: torch.device) -> int:
    """Bytes that can be had where the model runs."""
    if device.type == "cuda":
        unused, _ = torch.cuda.mem_get_info(device)
        return int(SHARE * (unused + torch.cuda.memory_reserved(device)))
    return int(SHARE * _free()) - BASE_HOST - HELD


def _working(sizes: Sizes, batch: int, dtype: torch.dtype, kind: str, measured: int) -> int:
    """Bytes at the peak of everything but the states between blocks."""
    size = dtype.itemsize
    most = max(_in_block(block, sizes, batch, size, measured) for block in sizes.blocks)
    if measured:
        # A block and the next; logits, their softmax in float32, and that as their gradient in their dtype.
        weights = max(sum(n * k for n, k in block.values()) for block in sizes.blocks)
        logits = min(LOGITS_AT_ONCE[kind], batch * sizes.vocabulary)
        most = max(most, 2 * weights * size + 8 * logits + 4 * batch * sizes.hidden * size)
    return most + sizes.ends * size


def _in_block(block: dict[str, tuple[int, int]], sizes: Sizes, batch: int, size: int, measured: int) -> int:
    """The most that working on a block takes; size: bytes of a value."""
    weights, hidden = sum(n * k for n, k in block.values()), sizes.hidden
    wide = max(max(shape) for shape in block.values())
    inputs = [k for _, k in _inputs(block)]
    hessians = 4 * sum(k * k for k in inputs)
    # A block and the next one, read ahead.
    common = 2 * weights * size
    forward = batch * (size * (3 * wide + 4 * hidden) + 8 * hidden)
    # All Hessians; of the widest its ordered copy and its factor, then the factor and rows that become codes.
    widest = 4 * max(k * k for k in inputs)
    rows = 4 * COPIES * min(ELEMENTS_AT_ONCE, max(1, measured) * max(n * k for n, k in block.values()))
    rounding, factoring, collecting = (
        hessians + widest + rows,
        hessians + 2 * widest,
        hessians + widest + forward,
    )
    moments = [forward, rounding, factoring, collecting]
    if measured:
        errors = measured * weights * size
        # The widest input is that of the last layer, which is rounded before all others.
        moments[1] += measured * size * max(n * k for n, k in block.values() if k == max(inputs))
        # Beside what linear layers keep, norms and attention with their own backward pass, or a layer's
        # output errors and these times its gradient.
        kept = int(size * _widths(block, sizes))
        moments.append(errors + batch * (kept + size * 9 * hidden + 16 * hidden))
        moments.append(errors + batch * (kept + size * 2 * measured * wide))
    return common + max(moments)


def _inputs(block: dict[str, tuple[int, int]]) -> list[tuple[str, int]]:
    """Each input that the block's layers read: one of these layers, and K."""
    return [
        (name, k) for (_, k), name in {(n.rpartition(".")[0], k): n for n, (_, k) in block.items()}.items()
    ]


def _leaving(sizes: Sizes) -> int:
    """Host bytes of a block's codes on their way to a file: packed, and as they are written."""
    return 2 * max(sum(n * k for n, k in block.values()) for block in sizes.blocks) * 5 // 8
