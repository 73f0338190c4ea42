"""The tiles that tune.py chooses from, by the most tokens that they are tried for."""

from __future__ import annotations

from mixllm.kernels.cuda.skinny import SkinnyTile
from mixllm.kernels.cuda.strips import HALF, WHOLE, StripTile
from mixllm.kernels.cuda.tiles import Tile

ANY = 1_000_000_000
BUCKETS = {8: (1, 8), 16: (16,), 32: (32,), 64: (64,), 128: (128,), 256: (256,), ANY: (1024,)}


def stream(bm: int, bn: int, wm: int, wn: int, wk: int, stages: int, blocks: int) -> Tile:
    return Tile(bm, bn, wm, wn, wk, stages, blocks, True)


def decoding(bn: int) -> list[Tile]:
    return [
        Tile(64, bn, 4, 1, 4, 4, 1),
        stream(64, bn, 2, 4, 1, 6, 1),
        stream(64, bn, 2, 8, 1, 3, 1),
        stream(64, bn, 2, 8, 1, 4, 1),
        stream(128, bn, 2, 4, 1, 3, 1),
        stream(128, bn, 4, 4, 1, 4, 1),
    ]


CANDIDATES = {
    8: decoding(8),
    16: decoding(16),
    32: [Tile(64, 32, 2, 1, 4, 3, 1), Tile(128, 32, 8, 1, 1, 4, 2), Tile(64, 32, 4, 1, 2, 3, 2)],
    64: [Tile(64, 64, 2, 2, 2, 3, 2), Tile(128, 64, 4, 2, 1, 4, 2), Tile(64, 64, 2, 2, 1, 4, 3)],
    128: [Tile(128, 64, 2, 2, 1, 4, 3), Tile(128, 128, 2, 2, 1, 4, 2), Tile(64, 64, 2, 2, 1, 4, 3)],
    256: [Tile(128, 64, 2, 2, 1, 4, 3), Tile(256, 128, 4, 2, 1, 5, 1)],
    ANY: [Tile(128, 64, 2, 2, 1, 4, 3), Tile(256, 128, 4, 2, 1, 5, 1), Tile(128, 128, 2, 2, 1, 4, 2)],
}
# With float32 sums beside the int32 ones a warp has no registers for a tile of 64 x 64.
GROUPED = {
    8: [t for t in decoding(8) if t.threads <= 256],
    16: [t for t in decoding(16) if t.threads <= 256],
    32: [Tile(64, 32, 4, 1, 2, 3, 2), Tile(128, 32, 8, 1, 1, 4, 2)],
    64: [Tile(64, 64, 2, 2, 1, 4, 2), Tile(128, 64, 4, 2, 1, 4, 1)],
    128: [Tile(128, 64, 4, 2, 1, 4, 1), Tile(64, 128, 2, 2, 1, 3, 2)],
    256: [Tile(64, 128, 2, 2, 1, 3, 2), Tile(128, 64, 4, 2, 1, 4, 1)],
    ANY: [Tile(64, 128, 2, 2, 1, 3, 2), Tile(128, 128, 4, 2, 1, 4, 1)],
}


# Of csrc/skinny.cu; docs/kernels.md's log says what else was tried.
SKINNY = {
    8: [SkinnyTile(64, 8, 4, kg, 5, 2, 2) for kg in (1, 2)],
    16: [SkinnyTile(64, 16, 4, kg, 4, 2, 2) for kg in (1, 2)],
    32: [SkinnyTile(64, 32, 2, 1, 6, 2, 2), SkinnyTile(128, 32, 2, 1, 9, 1, 1)],
    64: [SkinnyTile(64, 64, 2, 1, 4, 2, 2), SkinnyTile(128, 64, 2, 1, 6, 1, 1)],
}
SKINNY_GROUPED = {
    8: [SkinnyTile(64, 8, 4, 2, 4, 2, 2), SkinnyTile(128, 8, 2, 1, 5, 1, 2)],
    16: [SkinnyTile(64, 16, 4, 2, 4, 2, 2, 1), SkinnyTile(128, 16, 2, 1, 5, 1, 2)],
    32: [SkinnyTile(64, 32, 2, 1, 5, 2, 2), SkinnyTile(128, 32, 2, 1, 8, 1, 1)],
    64: [SkinnyTile(64, 64, 2, 1, 4, 2, 2), SkinnyTile(128, 64, 2, 1, 6, 1, 1)],
}

# Of csrc/strips.cu, with and without room for the next product's blocks and others for company.
STRIPS = [
    StripTile(8, 8, 16, HALF),
    StripTile(8, 8, 32, HALF),
    StripTile(8, 8, 32, WHOLE),
    StripTile(8, 8, 32, WHOLE, peers=2),
    StripTile(8, 16, 16, WHOLE),
    StripTile(16, 8, 32, WHOLE, peers=2),
    StripTile(16, 8, 16, WHOLE, peers=2),
    StripTile(16, 16, 16, WHOLE),
    StripTile(8, 8, 16, HALF, held=4),
    StripTile(8, 8, 32, WHOLE, held=4),
    StripTile(8, 8, 32, WHOLE, held=8),
    StripTile(8, 8, 32, WHOLE, peers=2, held=4),
    StripTile(16, 8, 16, WHOLE, peers=2, held=4),
    StripTile(16, 8, 16, WHOLE, 32, held=4),
]
