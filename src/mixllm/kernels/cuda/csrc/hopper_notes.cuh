// What the warpgroups must know of a tile, written down by a warp of its own a tile ahead: so none of them
// divides, nor waits for memory, while its tensor cores stand still. Its place first: the first tile begins with that.
#pragma once
#include "hopper_ring.cuh"

// The head: the place; for each 16-row tile where its codes begin in a stage, in KB, and whether they are of 8 bits;
// whether the rows are neighbours in y that 16-byte stores can serve.
constexpr int PLACE_AT = HEAD_AT, ROWS16_AT = HEAD_AT + 16, DENSE_AT = ROWS16_AT + TILES16 * 4;
constexpr int ROW_BITS = 7;
static_assert(1 << ROW_BITS == BM, "a sorted row is its channel and, in its lowest bits, its number in the tile");

__device__ __forceinline__ void note_tokens(const Arguments& p, u32 note, int token, int lane) {
#pragma unroll
  for (int t = 0; t < BN; t += 32) {
    const Token its(p, token + t + lane);
    store_shared_pair(note + TOKENS_AT + (t + lane) * 8, __float_as_uint(its.scale), its.excess);
  }
}

// A lane has every 32nd row. Rows that are not there have negative channels, no two the same.
__device__ __forceinline__ void note_rows(const Arguments& p, u32 note, const Place& place, int lane) {
  const bool aligned = (reinterpret_cast<u64>(p.out.y) | p.out.channels * 2) % 16 == 0;
  int channel[BM / 32], rank[BM / 32];
#pragma unroll
  for (int i = 0; i < BM / 32; ++i) {
    const int at = i * 32 + lane;
    const Row16 row16(p.shape, place.row16 + at / 16);
    const int row = (row16.index + (row16.eight ? 0 : p.shape.rows8)) * 16 + at % 16;
    const int its = row16.there ? p.out.rows[row] : -1;
    const float* scales = UNSIGNED ? static_cast<const float*>(p.excess) : p.out.row_scales;
    const float scale = row16.there && (WEIGHT_SCALES == 0 || UNSIGNED) ? scales[row] : 1.0f;
    const float bias = its >= 0 ? bias_of(p.out, its) : 0.0f;
    channel[i] = its >= 0 ? its : at - (1 << 30), rank[i] = 0;
    store_shared_u32(note + CHANNELS_AT + at * 4, channel[i]);
    store_shared_pair(note + FACTORS_AT + at * 8, __float_as_uint(scale), __float_as_uint(bias));
  }
  __syncwarp();
  const int first = static_cast<int>(load_shared_u32(note + CHANNELS_AT));
  bool dense = aligned && first >= 0 && first % 8 == 0;
#pragma unroll 1
  for (int at = 0; at < BM; at += 4) {
    const Words4 four = load_shared(note + CHANNELS_AT + at * 4);
#pragma unroll
    for (int i = 0; i < BM / 32; ++i) {
      const u32 own = static_cast<u32>(channel[i]);
      rank[i] += (four.x < own) + (four.y < own) + (four.z < own) + (four.w < own);
    }
  }
#pragma unroll
  for (int i = 0; i < BM / 32; ++i) {
    const int at = i * 32 + lane;
    dense = dense && channel[i] == first + at;
    store_shared_u32(note + SORTED_AT + rank[i] * 4, channel[i] >= 0 ? channel[i] << ROW_BITS | at : ~0u);
  }
  const u32 all = __reduce_add_sync(~0u, dense) == 32;
  if (lane == 0) store_shared_u32(note + DENSE_AT, all);
}

__device__ __forceinline__ void take_notes(const Arguments& p, u32 ring) {
  const int lane = threadIdx.x % 32;
  const Tiles tiles{p.shape};
  wait_for_earlier_kernels();
  Round<2> turn;
  Place place;
  for (int index = 0;; ++index, turn.next()) {
    const bool some = tiles.at(index, place);
    const u32 note = ring + NOTES_AT + turn.stage * NOTE_BYTES;
    barrier_wait(ring + READ_AT + turn.stage * 8, turn.parity ^ 1);
    if (lane == 0) {
      const u32 end = some ? place.end : 0;
      store_shared(note + PLACE_AT, {static_cast<u32>(place.token), static_cast<u32>(place.tile),
                                     static_cast<u32>(place.begin), end});
    }
    if (some && lane < TILES16) {
      const int at = place.row16 + lane;
      const u32 eight = Row16(p.shape, at).eight;
      store_shared_u32(note + ROWS16_AT + lane * 4, kilobytes_before(p.shape, place.row16, at) << 1 | eight);
    }
    barrier_arrive(ring + PLACED_AT + turn.stage * 8);
    if (!some) return;
    note_tokens(p, note, place.token, lane);
    note_rows(p, note, place, lane);
    barrier_arrive(ring + NOTED_AT + turn.stage * 8);
  }
}
