"""Many tokens on Hopper (csrc/hopper.cu): when it is taken, in which tiles, and the operator.

Activations come from ops.quantize(..., tiled=True) as [G, T, 128]: for each 128 inputs a line a token: so
a tile's lines are one piece of memory, ready for wgmma. Inside a line the 4-byte words of each half are
transposed as a 4 x 4 matrix (wgmma's order of inputs against that of csrc/unpack.cuh), and its 16-byte pieces
are swizzled: piece ^ token % 8.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mixllm.config import GROUP_SIZE
from mixllm.kernels.cuda.launch import Kernel, device, kernel
from mixllm.kernels.cuda.ops import TYPES, _Gemm, _Outputs, _Shape
from mixllm.kernels.cuda.tiles import Scales

ROWS = 128
# From so many tokens on: with 128, one tile's worth, csrc/gemm.cu is far quicker where K is long; float sums
# have not been timed with fewer than 1,024.
LEAST_TOKENS = {"whole": 256, "grouped": 1024}
# Tokens whose tiles run at one time, so that they stay in L2.
BAND = 2048


@dataclass(frozen=True)
class HopperTile:
    """128 rows x bn tokens, a ring of stages, cluster blocks that share their tokens; see csrc/hopper.cu."""

    bn: int
    stages: int
    cluster: int

    @property
    def threads(self) -> int:
        return 384

    def macros(self) -> dict[str, int]:
        return {"BN": self.bn, "STAGES": self.stages, "CLUSTER": self.cluster}

    def shared_bytes(self, scales: Scales) -> int:
        """As csrc/hopper_ring.cuh lays it out, and what aligning it may take."""
        meta = ROWS // 16 * (16 + (0, 32, 64)[scales.weight]) + (0 if scales.token else self.bn * 4)
        stage = (self.bn + ROWS) * 128 + meta + 16
        return 1024 + self.stages * stage + 2 * (64 * 144 + self.bn * 8)


# Float sums beside the int32 ones leave registers for half the tokens.
TILES = {
    "whole": [HopperTile(256, 4, 1), HopperTile(256, 4, 2), HopperTile(128, 6, 1), HopperTile(128, 6, 2)],
    "grouped": [HopperTile(128, 6, 1), HopperTile(128, 6, 2)],
}
# What a tile of so many tokens costs beside its stages, in stages of 128 inputs; fitted to times on an H100,
# where a stage takes as long with 128 tokens as with 256.
OVERHEAD = {256: 21, 128: 8}


def takes(index: int, scales: Scales, tokens: int) -> bool:
    """Whether so many tokens go this way on a GPU."""
    return tokens >= LEAST_TOKENS[scales.key] and device(index).capability == (9, 0)


def choose(
    scales: Scales, tokens: int, rows8: int, rows4: int, groups: int, multiprocessors: int
) -> HopperTile:
    """The tile that should be done first: whole waves, each as long as its products and an overhead.

    rows8, rows4: 16-row tiles of each width; groups: of 128 inputs. The first of equals is taken.
    """

    def cost(tile: HopperTile) -> int:
        per_wave = multiprocessors // tile.cluster
        work = row_groups(tile, rows8, rows4) * -(-tokens // tile.bn)
        return -(-work // per_wave) * (groups + OVERHEAD[tile.bn])

    return min(TILES[scales.key], key=cost)


def row_groups(tile: HopperTile, rows8: int, rows4: int) -> int:
    """Row tiles of both widths in clusters of neighbours."""
    return -(-(-(-rows8 * 16 // ROWS) + -(-rows4 * 16 // ROWS)) // tile.cluster)


def product(index: int, scales: Scales, tile: HopperTile) -> Kernel:
    macros = {**tile.macros(), **scales.macros()}
    return kernel("hopper.cu", "mixed_gemm", tuple(macros.items()), index, tile.shared_bytes(scales))


def gemm_into(
    y: Tensor, codes: Tensor, x_scales: Tensor, sums: Tensor, weight: list[Tensor], bias: Tensor | None,
    scales: Scales, group: int, tile: HopperTile,
) -> None:  # fmt: skip
    """The kernel with a given tile. weight: codes8, codes4, scales8, scales4, rows, row_scales."""
    codes8, codes4, scales8, scales4, rows, row_scales = weight
    target = device(y.device.index)
    groups, tokens, _ = codes.shape
    work = row_groups(tile, len(codes8), len(codes4)) * -(-tokens // tile.bn)
    clusters = min(work, target.multiprocessors // tile.cluster)
    product(target.index, scales, tile).launch(
        clusters * tile.cluster,
        tile.threads,
        _Gemm(
            codes8.data_ptr(), codes4.data_ptr(), scales8.data_ptr(), scales4.data_ptr(),
            codes.data_ptr(), x_scales.data_ptr(), None, None,
            _Outputs(rows.data_ptr(), row_scales.data_ptr(), sums.data_ptr(),
                     None if bias is None else bias.data_ptr(), y.data_ptr(), y.shape[1], TYPES[y.dtype]),
            _Shape(tokens, len(codes8), len(codes4), groups, 0, 1, 1, BAND // tile.bn),
            x_scales.shape[1], (max(group, GROUP_SIZE) // GROUP_SIZE).bit_length() - 1,
        ),
    )  # fmt: skip


@torch.library.custom_op("mixllm::gemm_many", mutates_args=(), device_types="cuda")
def gemm_many(
    codes: Tensor, x_scales: Tensor, sums: Tensor, weight: list[Tensor], bias: Tensor | None, channels: int,
    dtype: torch.dtype, weight_scales: int, group: int,
) -> Tensor:  # fmt: skip
    """Quantized activations, tiled, times a mixed weight -> y [T, channels]."""
    y = codes.new_empty((codes.shape[1], channels), dtype=dtype)
    scales = Scales(weight_scales, group == 0)
    multiprocessors = device(y.device.index).multiprocessors
    tile = choose(scales, len(y), len(weight[0]), len(weight[1]), len(codes), multiprocessors)
    with torch.cuda.device(y.device):
        gemm_into(y, codes, x_scales, sums, weight, bias, scales, group, tile)
    return y


@gemm_many.register_fake
def _gemm_many_like(
    codes: Tensor, x_scales: Tensor, sums: Tensor, weight: list[Tensor], bias: Tensor | None, channels: int,
    dtype: torch.dtype, weight_scales: int, group: int,
) -> Tensor:  # fmt: skip
    return codes.new_empty((codes.shape[1], channels), dtype=dtype)


def untiled(codes: Tensor) -> Tensor:
    """[G, T, 128] as the quantizer writes it for this path -> [T, 128 G] in the order of inputs."""
    groups, tokens, _ = codes.shape
    pieces = codes.reshape(groups, tokens, 8, 16)
    token = torch.arange(tokens, device=codes.device)[:, None] % 8
    source = torch.arange(8, device=codes.device) ^ token
    ordered = pieces.gather(2, source[None, :, :, None].expand(pieces.shape))
    words = ordered.reshape(groups, tokens, 2, 4, 4, 4).transpose(3, 4)
    return words.reshape(groups, tokens, 128).transpose(0, 1).reshape(tokens, groups * 128)
