"""The shapes of csrc/strips.cu, which serves few tokens on Hopper where a block has room for all of them."""

from __future__ import annotations

from dataclasses import dataclass

from mixllm.kernels.cuda.tiles import Scales

# Of an SM's shared memory what one of two blocks can have, and what one alone can.
HALF, WHOLE = 115712, 232448
# A ring of fewer stages leaves the memory idle while warps work.
LEAST_STAGES = 3


@dataclass(frozen=True)
class StripTile:
    """16 rows x bn tokens for `warps`, stages of `slots`, in `shared` bytes of a block."""

    bn: int
    warps: int
    slots: int
    shared: int

    bm = 16
    blocks = 1
    cuts = False

    @property
    def source(self) -> str:
        return "strips.cu"

    @property
    def threads(self) -> int:
        return 32 * (self.warps + 1)

    def macros(self) -> dict[str, int]:
        sizes = {"BN": self.bn, "WARPS": self.warps, "SLOTS": self.slots}
        return {**sizes, "SHARED": self.shared, "BLOCKS": 2 if self.shared <= HALF else 1}

    def shared_bytes(self, scales: Scales) -> int:
        return self.shared

    def stages(self, scales: Scales, tokens: int, groups: int, x_scale_bytes: int) -> int:
        """As csrc/strips.cu divides what X and its scales leave."""
        notes = 272 + self.bn * 8 + 2 * self.warps * 64 * self.bn
        ring = _up(_up(notes) + tokens * groups * 128 + x_scale_bytes)
        return (self.shared - ring) // (self.slots * (1040 + (0, 32, 64)[scales.weight]))


def _up(size: int) -> int:
    return -(-size // 128) * 128
