"""What of a model's shapes a count of memory goes by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mixllm.format.config import EXPERT

# (out, in) of a block's linear layers by name.
Shapes = dict[str, tuple[int, int]]


@dataclass(frozen=True)
class Sizes:
    """Of a model: (out, in) of the linear layers of each block by name, features of a hidden state, tokens
    it knows, parameters outside the blocks, shared ones once, the share of its experts that a token meets."""

    blocks: Sequence[Shapes]
    hidden: int
    vocabulary: int
    ends: int
    routed: float = 1.0

    @property
    def weights(self) -> int:
        return sum(map(weights_of, self.blocks))

    @property
    def widest(self) -> int:
        """Weights of the block that has most."""
        return max(map(weights_of, self.blocks))

    @property
    def hessians(self) -> list[int]:
        """K of every Hessian [K, K]; layers of one module with one K nearly always share their input."""
        return [k for block in self.blocks for _, k in inputs(block)]

    @property
    def met(self) -> float:
        """Weights that a token meets."""
        return sum(n * k * self.share(name) for block in self.blocks for name, (n, k) in block.items())

    @property
    def hessians_met(self) -> float:
        """K^2 of every Hessian that a token adds to."""
        return sum(k * k * self.share(name) for block in self.blocks for name, k in inputs(block))

    def share(self, name: str) -> float:
        """Of all tokens, those that a layer sees."""
        return self.routed if EXPERT.search(name) else 1.0

    def kept(self, block: Shapes) -> float:
        """Values a token of the outputs of a block's layers, their gradients, and the inputs."""
        out = sum(n * self.share(name) for name, (n, _) in block.items())
        return 2 * out + sum(k * self.share(name) for name, k in inputs(block))


def weights_of(block: Shapes) -> int:
    return sum(n * k for n, k in block.values())


def inputs(block: Shapes) -> list[tuple[str, int]]:
    """Each input that the block's layers read: one of these layers, and K."""
    return [
        (name, k) for (_, k), name in {(n.rpartition(".")[0], k): n for n, (_, k) in block.items()}.items()
    ]
