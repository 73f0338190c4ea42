// Which tile of 128 rows x BN tokens a block works on: one persistent grid of clusters (hopper.cu).
//
// Row tiles of 8 bits are spread evenly among those of 4: both write to the same channels' neighbourhood, and should
// do so while it is in L2 (ten rows of a hundred put 8-bit channels into four of five 32-byte sectors of y). CLUSTER
// neighbours in that order, of one width or not, are a cluster's, and share its tokens. Bands of token blocks with the
// rows outermost: what runs at one time is about as many rows as tokens, and stays in L2.
#pragma once
#include "epilogue.cuh"

struct Place {
  int row16;  // first 16-row tile, counted inside its width
  int rows;   // 16-row tiles that are there, 8 at most; 0 where the row tiles are an odd number
  int token;
  bool eight;
};

struct Tiles {
  const Shape& shape;

  __device__ __forceinline__ static int ceil_tiles(int rows16) { return (rows16 * 16 + BM - 1) / BM; }
  __device__ __forceinline__ int row_tiles() const { return ceil_tiles(shape.rows8) + ceil_tiles(shape.rows4); }
  __device__ __forceinline__ int token_blocks() const { return (shape.tokens + BN - 1) / BN; }

  // Tile number `index` of this block; false when there is none.
  __device__ __forceinline__ bool at(int index, u32 rank, Place& place) const {
    const int all = row_tiles(), rows = (all + CLUSTER - 1) / CLUSTER, blocks = token_blocks();
    const int tile = blockIdx.x / CLUSTER + index * (gridDim.x / CLUSTER);
    if (tile >= rows * blocks) return false;
    const int band = tile / (rows * shape.band), rest = tile - band * rows * shape.band;
    const int width = min(shape.band, blocks - band * shape.band);
    place.token = (band * shape.band + rest % width) * BN;
    const int row = rest / width * CLUSTER + static_cast<int>(rank), eights = ceil_tiles(shape.rows8);
    const int before = row * eights / all;  // of 8 bits
    place.eight = (row + 1) * eights / all > before && row < all;
    place.row16 = (place.eight ? before : row - before) * (BM / 16);
    place.rows = max(min((place.eight ? shape.rows8 : shape.rows4) - place.row16, BM / 16), 0);
    return true;
  }
};
