"""csrc/cluster.cu: 17 to 64 tokens on Hopper where sums are whole, a tile of 64 rows a cluster."""

from __future__ import annotations

from dataclasses import dataclass

from mixllm.kernels.cuda.tiles import Scales

LEAST_STAGES = 2


@dataclass(frozen=True)
class ClusterTile:
    """64 rows x bn tokens for `peers` blocks, each with a part of K, stages of `slots`, in `shared` bytes."""

    bn: int
    peers: int
    slots: int
    shared: int

    bm = 64
    blocks = 1
    threads = 320

    @property
    def source(self) -> str:
        return "cluster.cu"

    def macros(self) -> dict[str, int]:
        sizes = {"BN": self.bn, "PEERS": self.peers, "SLOTS": self.slots, "SHARED": self.shared}
        return {**sizes, "BLOCKS": 2 if self.shared <= 113664 else 1, "QUANTIZE": 0}

    def shared_bytes(self, scales: Scales) -> int:
        return self.shared

    def vectors(self, tokens: int, groups: int) -> int | None:
        """Of 8 inputs a thread, where the kernel quantizes; None where that is too much for it."""
        return next((n for n in (1, 2, 4, 8) if tokens * -(-groups // self.peers) <= n * 16), None)

    def room(
        self, scales: Scales, tokens: int, groups: int, _x_scale_bytes: int = 0, quantizes: bool = False
    ) -> bool:
        """Whether sums are whole, X leaves enough of a ring, and so many threads can quantize it."""
        if scales.key != "whole" or (quantizes and not self.vectors(tokens, groups)):
            return False
        return self.stages(tokens, groups, quantizes) >= LEAST_STAGES

    def stages(self, tokens: int, groups: int, quantizes: bool = False) -> int:
        """As csrc/cluster_ring.cuh divides what sums and X leave."""
        notes = -(-(288 + self.peers * 8) // 16) * 16 + self.bn * 8 + self.peers * 2 * 64 * self.bn
        notes += quantizes * self.peers * self.bn * 8
        x = -(-groups // self.peers) * -(-tokens // 8) * 1024
        return (self.shared - -(-notes // 1024) * 1024 - x) // (4 * self.slots * 1040)
