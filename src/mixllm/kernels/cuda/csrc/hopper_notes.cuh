// What the warpgroups must know of a tile, written down by a warp of its own a tile ahead: so none of them
// divides, nor waits for memory, while its tensor cores stand still. Its place first: the first tile begins with that.
#pragma once
#include "hopper_ring.cuh"

// The head: the place; for each 16-row tile where its codes begin in a stage, in KB, and whether they are of 8 bits;
// how many pieces of eight neighbours in y the rows have that 16-byte stores can serve, or that all are neighbours.
constexpr int PLACE_AT = HEAD_AT, ROWS16_AT = HEAD_AT + 16, PIECES_AT = ROWS16_AT + TILES16 * 4;
constexpr u32 ALL_NEIGHBOURS = ~0u;

__device__ __forceinline__ void note_tokens(const Arguments& p, u32 note, int token, int lane) {
#pragma unroll
  for (int t = 0; t < BN; t += 32) {
    const Token its(p, token + t + lane);
    store_shared_pair(note + TOKENS_AT + (t + lane) * 8, __float_as_uint(its.scale), its.excess);
  }
}

// A lane has every 32nd row.
__device__ __forceinline__ void note_rows(const Arguments& p, u32 note, const Place& place, int lane) {
  const int all = p.shape.rows8 + p.shape.rows4;
  const int* lines = p.blocks + all + 1;
  const float* excess = reinterpret_cast<const float*>(lines + (all + TILES16 - 1) / TILES16 * BM);
  lines += place.row16 * 16;
  const float* scales = UNSIGNED ? excess : p.out.row_scales;
  const int first = lines[0] / BM;
  bool neighbours = true;
#pragma unroll
  for (int i = 0; i < BM / 32; ++i) {
    const int at = i * 32 + lane, line = lines[at];
    const Row16 row16(p, place.row16 + at / 16);
    const int row = (row16.index + (row16.eight ? 0 : p.shape.rows8)) * 16 + at % 16;
    const int its = row16.there ? p.out.rows[row] : -1;
    const float scale = row16.there && (WEIGHT_SCALES == 0 || UNSIGNED) ? scales[row] : 1.0f;
    const float bias = its >= 0 ? bias_of(p.out, its) : 0.0f;
    store_shared_u32(note + CHANNELS_AT + at * 4, its);
    store_shared_pair(note + FACTORS_AT + at * 8, __float_as_uint(scale), __float_as_uint(bias));
    store_shared_u32(note + SORTED_AT + at * 4, line);
    store_shared_u32(note + SLOTS_AT + line % static_cast<u32>(BM) * 4, at);
    neighbours = neighbours && line == (first + at) * BM + at;
  }
  // A lane has a piece.
  const int from = lane < BM / 8 ? lines[lane * 8] : -1, to = lane < BM / 8 ? lines[lane * 8 + 7] : 0;
  const bool aligned = (reinterpret_cast<u64>(p.out.y) | p.out.channels * 2) % 16 == 0;
  const bool whole = aligned && from >= 0 && from / BM % 8 == 0 && to / BM == from / BM + 7;
  const int pieces = __reduce_add_sync(~0u, whole), alike = __reduce_add_sync(~0u, neighbours);
  if (lane == 0) store_shared_u32(note + PIECES_AT, pieces == BM / 8 && alike == 32 ? ALL_NEIGHBOURS : pieces);
}

__device__ __forceinline__ void take_notes(const Arguments& p, u32 ring) {
  const int lane = threadIdx.x % 32;
  const Tiles tiles{p.shape};
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
      const u32 eight = Row16(p, at).eight;
      store_shared_u32(note + ROWS16_AT + lane * 4, kilobytes_before(p, place.row16, at) << 1 | eight);
    }
    barrier_arrive(ring + PLACED_AT + turn.stage * 8);
    if (!some) return;
    if (index == 0) wait_for_earlier_kernels();
    note_tokens(p, note, place.token, lane);
    note_rows(p, note, place, lane);
    barrier_arrive(ring + NOTED_AT + turn.stage * 8);
  }
}
