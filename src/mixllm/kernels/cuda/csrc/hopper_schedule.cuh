// Which tile of 128 rows x BN tokens a block works on: one persistent grid (hopper.cu).
//
// A tile's eight 16-row tiles are of both widths, mixed evenly over the whole weight: so all tiles cost the same,
// and what writes to the same channels' neighbourhood does so at about the same time, while it is in L2 (ten 8-bit
// rows of a hundred put an 8-bit channel into four of five 32-byte sectors of y). Bands of token blocks with the
// rows outermost: what runs at one time is about as many rows as tokens, and stays in L2. The first `split` tiles are cut into equal shares
// of stages, as in schedule.cuh: a block works from its highest tile down, and whoever has a tile's end adds up.
#pragma once
#include "epilogue.cuh"

// 16-row tile number `at` of both widths: its number inside its own.
struct Row16 {
  int index;
  bool eight, there;

  __device__ __forceinline__ Row16(const Shape& shape, int at) {
    const int all = shape.rows8 + shape.rows4, before = eights_before(shape, at);
    there = at < all;
    eight = there && eights_before(shape, at + 1) > before;
    index = eight ? before : at - before;
  }
  // Half a step ahead: an 8-bit tile comes amid the 4-bit ones that its channels lie among.
  __device__ __forceinline__ static int eights_before(const Shape& shape, int at) {
    const int all = shape.rows8 + shape.rows4;
    return static_cast<int>((static_cast<u32>(at) * shape.rows8 + all / 2) / all);
  }
};

struct Place {
  int row16;       // first of its 16-row tiles, counted over both widths
  int token;
  int tile;
  int begin, end;  // stages of the tile's `groups`
};

struct Tiles {
  const Shape& shape;

  __device__ __forceinline__ int row_tiles() const { return ((shape.rows8 + shape.rows4) * 16 + BM - 1) / BM; }
  __device__ __forceinline__ int token_blocks() const { return (shape.tokens + BN - 1) / BN; }

  // The stage, of all in the cut tiles, where a block's share begins. At most three tiles a block are cut: 32 bits hold it.
  __device__ __forceinline__ int start_of(int block) const {
    return static_cast<int>(static_cast<u32>(shape.split * shape.groups) * block / gridDim.x);
  }

  // Piece number `index` of this block; false when there is none.
  __device__ __forceinline__ bool at(int index, Place& place) const {
    const int rows = row_tiles(), blocks = token_blocks(), groups = shape.groups;
    const int first = start_of(blockIdx.x), last = start_of(blockIdx.x + 1);
    const int pieces = last > first ? (last - 1) / groups - first / groups + 1 : 0;
    place.begin = 0, place.end = groups;
    if (index < pieces) {
      place.tile = (last - 1) / groups - index;
      place.begin = max(first - place.tile * groups, 0), place.end = min(last - place.tile * groups, groups);
    } else {
      place.tile = shape.split + blockIdx.x + (index - pieces) * gridDim.x;
      if (place.tile >= rows * blocks) return false;
    }
    const int band = place.tile / (rows * shape.band), rest = place.tile - band * rows * shape.band;
    const int width = min(shape.band, blocks - band * shape.band);
    place.token = (band * shape.band + rest % width) * BN;
    place.row16 = rest / width * (BM / 16);
    return true;
  }
};
