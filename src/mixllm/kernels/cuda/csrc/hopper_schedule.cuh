// Which tile of 128 rows x BN tokens a block works on: one persistent grid (hopper.cu).
//
// A tile's eight 16-row tiles are of both widths, in the order of their channels (blocks.py): so that it has most rows of
// most 32-byte sectors of y that it writes to (ten 8-bit rows of a hundred put an 8-bit channel into four of five of
// those), and who has the rest writes at about the same time, while it is in L2. Bands of token blocks with the
// rows outermost: what runs at one time is about as many rows as tokens, and stays in L2. The first `split` tiles are cut into equal shares
// of stages, as in schedule.cuh: a block works from its highest tile down, and whoever has a tile's end adds up.
#pragma once
#include "epilogue.cuh"

// 16-row tile number `at` of both widths: its number inside its own.
struct Row16 {
  int index;
  bool eight, there;

  __device__ __forceinline__ Row16(const Arguments& p, int at) {
    const int before = eights_before(p, at);
    there = at < p.shape.rows8 + p.shape.rows4;
    eight = eights_before(p, at + 1) > before;
    index = eight ? before : at - before;
  }
  __device__ __forceinline__ static int eights_before(const Arguments& p, int at) {
    return p.blocks[min(at, p.shape.rows8 + p.shape.rows4)];
  }
};

// Float group scales and one scale a token: products of unsigned operands (hopper_scales.cuh), and stages of zero points behind
// those of groups, ZERO_GROUPS groups' each (hopper_floats.cuh).
constexpr bool UNSIGNED = WEIGHT_SCALES != 0 && TOKEN_SCALES;
constexpr int ZERO_GROUPS = 16;

struct Place {
  int row16;       // first of its 16-row tiles, counted over both widths
  int token;
  int tile;
  int begin, end;  // stages of the tile's
};

struct Tiles {
  const Shape& shape;

  // Of a tile, along K.
  __device__ __forceinline__ int stages() const {
    return shape.groups + (UNSIGNED ? (shape.groups + ZERO_GROUPS - 1) / ZERO_GROUPS : 0);
  }
  __device__ __forceinline__ int row_tiles() const { return ((shape.rows8 + shape.rows4) * 16 + BM - 1) / BM; }
  __device__ __forceinline__ int token_blocks() const { return (shape.tokens + BN - 1) / BN; }

  // The stage, of all in the cut tiles, where a block's share begins. At most three tiles a block are cut: 32 bits hold it.
  __device__ __forceinline__ int start_of(int block) const {
    return static_cast<int>(static_cast<u32>(shape.split * stages()) * block / gridDim.x);
  }

  // Piece number `index` of this block; false when there is none.
  __device__ __forceinline__ bool at(int index, Place& place) const {
    const int rows = row_tiles(), blocks = token_blocks(), all = stages();
    const int first = start_of(blockIdx.x), last = start_of(blockIdx.x + 1);
    const int pieces = last > first ? (last - 1) / all - first / all + 1 : 0;
    place.begin = 0, place.end = all;
    if (index < pieces) {
      place.tile = (last - 1) / all - index;
      place.begin = max(first - place.tile * all, 0), place.end = min(last - place.tile * all, all);
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
