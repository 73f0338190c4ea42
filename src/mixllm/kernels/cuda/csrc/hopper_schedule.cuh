// Which tile of 128 rows x BN tokens a block works on: one persistent grid of clusters (hopper.cu).
//
// 8-bit row tiles are counted first, then 4-bit ones; CLUSTER neighbours in that count, of one width or not, are a
// cluster's, and share its tokens. Bands of token blocks with the rows outermost: what runs at one time is about as
// many rows as tokens, and stays in L2.
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
  __device__ __forceinline__ int row_groups() const {
    return (ceil_tiles(shape.rows8) + ceil_tiles(shape.rows4) + CLUSTER - 1) / CLUSTER;
  }
  __device__ __forceinline__ int token_blocks() const { return (shape.tokens + BN - 1) / BN; }

  // Tile number `index` of this block; false when there is none.
  __device__ __forceinline__ bool at(int index, u32 rank, Place& place) const {
    const int rows = row_groups(), blocks = token_blocks();
    const int tile = blockIdx.x / CLUSTER + index * (gridDim.x / CLUSTER);
    if (tile >= rows * blocks) return false;
    const int band = tile / (rows * shape.band), rest = tile - band * rows * shape.band;
    const int width = min(shape.band, blocks - band * shape.band);
    place.token = (band * shape.band + rest % width) * BN;
    const int row = rest / width * CLUSTER + static_cast<int>(rank), border = ceil_tiles(shape.rows8);
    place.eight = row < border;
    place.row16 = (place.eight ? row : row - border) * (BM / 16);
    place.rows = max(min((place.eight ? shape.rows8 : shape.rows4) - place.row16, BM / 16), 0);
    return true;
  }
};
