// Who computes what: one persistent grid over 8-bit and 4-bit tiles, deterministic.
//
// A tile is BM rows x BN tokens over all of K. All 8-bit tiles come first (they are the longer), then the
// 4-bit ones; inside a kind, bands of token blocks with the rows outermost, so that the tiles that run at
// one time share W and X in L2. A slot is the piece of K whose codes are 64 bytes a row: 128 inputs of a 4-bit
// row, 64 of an 8-bit row. The first `split` tiles are cut into equal shares of slots (stream-K), the rest
// go round the blocks whole:
//
//        tile 0          tile 1          tile 2      | tile 3   tile 4 ...
//     |---------------|---------------|--------------| whole    whole
//     |  block 0  |  block 1  |  block 2  | block 3  | block 0  block 1 ...
//
// A block works from its highest tile down. So what it has of a tile whose end belongs to a later block is
// its first work, and by the time that the tile's owner (the block that has its end) needs the partial sums
// they are there. An owner waits only for blocks with lower numbers, which started before it: no deadlock,
// whatever else runs on the GPU.
#pragma once
#include "ptx.cuh"

struct Shape {
  int tokens, rows8, rows4;  // rows in 16-row tiles
  int groups;                // of 128 inputs
  int split;                 // tiles that stream-K cuts
  int cost8, cost4;          // of one slot, for equal shares
  int band;                  // token blocks in a band
};

struct Segment {
  int row16;       // first 16-row tile, counted inside its kind
  int token_block;
  int begin, end, slots;  // slots [begin, end) of `slots`
  int tile;
  bool eight;
};

// A block's part of the cut tiles, [first, last) in tiles and slots.
struct Share {
  int first_tile, first_slot, last_tile, last_slot;
};

// ONE_BLOCK: all tokens are in one block, every slot costs the same.
template <int ROWS, int TOKENS, bool ONE_BLOCK>
struct Schedule {
  const Shape& shape;
  const Share& share;  // in shared memory: it is needed seldom, registers always

  __device__ __forceinline__ static int ceil_tiles(int rows16) { return (rows16 * 16 + ROWS - 1) / ROWS; }
  __device__ __forceinline__ int token_blocks() const { return ONE_BLOCK ? 1 : (shape.tokens + TOKENS - 1) / TOKENS; }
  __device__ __forceinline__ int cost8() const { return ONE_BLOCK ? 1 : shape.cost8; }
  __device__ __forceinline__ int cost4() const { return ONE_BLOCK ? 1 : shape.cost4; }
  __device__ __forceinline__ int tiles8() const { return ceil_tiles(shape.rows8) * token_blocks(); }
  __device__ __forceinline__ int tiles4() const { return ceil_tiles(shape.rows4) * token_blocks(); }
  __device__ __forceinline__ int slots(bool eight) const { return eight ? 2 * shape.groups : shape.groups; }

  // The tile and slot where a block's share of the cut tiles begins. All of it fits 32 bits: at most two tiles
  // a block are cut.
  __device__ __forceinline__ void start_of(int block, int& tile, int& slot) const {
    const u32 tile8 = slots(true) * cost8(), tile4 = slots(false) * cost4();
    const u32 split8 = min(shape.split, tiles8());
    const u32 border = split8 * tile8, total = border + (shape.split - split8) * tile4;
    u32 at = total * block / gridDim.x;
    if (at < border) {
      tile = at / tile8;
      slot = at % tile8 / cost8();
    } else {
      at -= border;
      tile = split8 + at / tile4;
      slot = at % tile4 / cost4();
    }
  }

  __device__ __forceinline__ Share own_share() const {
    Share s;
    start_of(blockIdx.x, s.first_tile, s.first_slot);
    start_of(blockIdx.x + 1, s.last_tile, s.last_slot);
    return s;
  }

  // This block's piece number `index`; false when there is none.
  __device__ __forceinline__ bool piece(int index, Segment& s) const {
    const Share own = share;
    // With fewer slots than blocks some shares are empty.
    const bool some = own.last_tile > own.first_tile || own.last_slot > own.first_slot;
    const int pieces = some ? own.last_tile - own.first_tile + (own.last_slot > 0) : 0, border = tiles8();
    int tile;
    if (index < pieces) {
      tile = own.last_tile - (own.last_slot == 0) - index;
    } else {
      tile = shape.split + blockIdx.x + (index - pieces) * gridDim.x;
      if (tile >= border + tiles4()) return false;
    }
    s.tile = tile;
    s.eight = tile < border;
    s.slots = slots(s.eight);
    s.begin = index < pieces && tile == own.first_tile ? own.first_slot : 0;
    s.end = index < pieces && tile == own.last_tile ? own.last_slot : s.slots;

    const int inside = s.eight ? tile : tile - border;
    if constexpr (ONE_BLOCK) {
      s.row16 = inside * (ROWS / 16), s.token_block = 0;
      return true;
    }
    const int rows = ceil_tiles(s.eight ? shape.rows8 : shape.rows4);
    const int band = inside / (rows * shape.band);
    const int width = min(shape.band, token_blocks() - band * shape.band);
    const int rest = inside - band * rows * shape.band;
    s.row16 = rest / width * (ROWS / 16);
    s.token_block = band * shape.band + rest % width;
    return true;
  }
};
