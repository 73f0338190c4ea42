// The ring that the copy engine fills and the warpgroups read: what a stage holds, and the warp that asks for it.
#pragma once
#include "sm90.cuh"
#include "hopper_schedule.cuh"

constexpr int CONSUMERS = 2, PRODUCERS = 3, THREADS = 128 * (CONSUMERS + 1), TILES16 = BM / 16;
// A stage: 128 inputs of BN tokens and of 128 rows, and their scales of one group.
constexpr int X_BYTES = BN * 128, W_BYTES = BM * 128, STAGE_BYTES = X_BYTES + W_BYTES;
constexpr int ZERO_BYTES = W_BYTES / TILES16;  // where a stage of zero points has a 16-row tile's scales
constexpr int W_SCALE_BYTES = TILES16 * META4, X_SCALE_BYTES = TOKEN_SCALES ? 0 : BN * 4;
constexpr int SCALE_STAGE = W_SCALE_BYTES + X_SCALE_BYTES;
constexpr int CHUNK = 32, LINE = BM * 2 + 16;  // the epilogue's tokens at a time; bytes a token, over all banks
constexpr int SCALES_AT = STAGES * STAGE_BYTES, STAGING_AT = SCALES_AT + STAGES * SCALE_STAGE;
constexpr int NOTES_AT = STAGING_AT + 2 * CHUNK * LINE;
// What is to be known of a tile, twice: tokens; rows: channel, scale and bias; the order in which they are written, and where
// in that a row is; the head.
constexpr int TOKENS_AT = 0, CHANNELS_AT = BN * 8, FACTORS_AT = CHANNELS_AT + BM * 4, SORTED_AT = FACTORS_AT + BM * 8;
constexpr int SLOTS_AT = SORTED_AT + BM * 4, HEAD_AT = SLOTS_AT + BM * 4, NOTE_BYTES = HEAD_AT + 64;
constexpr int FULL_AT = NOTES_AT + 2 * NOTE_BYTES, EMPTY_AT = FULL_AT + STAGES * 8;
constexpr int PLACED_AT = EMPTY_AT + STAGES * 8, NOTED_AT = PLACED_AT + 2 * 8, READ_AT = NOTED_AT + 2 * 8;

// A place in the ring and which time round it is.
template <int PLACES>
struct Round {
  int stage = 0;
  u32 parity = 0;
  __device__ __forceinline__ void next() {
    if (++stage == PLACES) stage = 0, parity ^= 1;
  }
};
using Turn = Round<STAGES>;

__device__ __forceinline__ void ring_init(u32 ring) {
  for (int stage = 0; stage < STAGES; ++stage) {
    barrier_init(ring + FULL_AT + stage * 8, 1 + PRODUCERS * 32);
    barrier_init(ring + EMPTY_AT + stage * 8, CONSUMERS * 4);
  }
  for (int note = 0; note < 2; ++note) {
    barrier_init(ring + PLACED_AT + note * 8, 32);
    barrier_init(ring + NOTED_AT + note * 8, 32);
    barrier_init(ring + READ_AT + note * 8, CONSUMERS * 4);
  }
  barriers_made();
}

__device__ __forceinline__ void await_stage(u32 ring, const Turn& turn) {
  barrier_wait(ring + FULL_AT + turn.stage * 8, turn.parity);
}

// A warp has read all that it wants of a stage.
__device__ __forceinline__ void leave_stage(u32 ring, int stage, int lane) {
  __syncwarp();
  if (lane == 0) barrier_arrive(ring + EMPTY_AT + stage * 8);
}

// What a warpgroup has of a tile: stages begin .. end of Tiles::stages(), whose first `groups` are groups.
struct Span {
  int begin, end, groups;
};

// Where in a stage a 16-row tile's codes begin, in KB after the tokens: `first` is the first of the block's.
__device__ __forceinline__ int kilobytes_before(const Arguments& p, int first, int at) {
  return at - first + Row16::eights_before(p, at) - Row16::eights_before(p, first);
}

// The copy engine takes 34 to 45 ns a piece, whatever its size up to a KB, and a stage's 1,024 cycles are hardly more
// than ten of those. So it brings the tokens, one piece, and warps copy the rest by themselves, 16 bytes a lane.

// A stage of zero points: the scales of its groups, of four 16-row tiles from number `at` of both widths on. tiles: in
// the low four bits those that are there, in the next those of 8 bits, then how many of 8 bits are before.
__device__ __forceinline__ void copy_zeros(const Arguments& p, u32 to, int at, u32 tiles, int stage) {
  int before = static_cast<int>(tiles >> 8);
  const int groups = p.shape.groups, group = (stage - groups) * ZERO_GROUPS, all = min(groups - group, ZERO_GROUPS);
#pragma unroll 1
  for (; tiles & 15u; tiles = tiles >> 1 & 0x77u, ++at, to += ZERO_BYTES) {
    const bool eight = tiles & 16u;
    const int each = eight ? META8 : META4, row = eight ? before : at - before;
    const u8* from = (eight ? p.scales8 : p.scales4) + (static_cast<i64>(row) * groups + group) * each;
#pragma unroll 1
    for (int i = threadIdx.x % 32 * 16; i < all * each; i += 512) copy_async(to + i, from + i);
    before += eight;
  }
}

// A warp: four 16-row tiles' codes. Weights are no earlier kernel's, so it waits for none.
__device__ __forceinline__ void produce_codes(const Arguments& p, u32 ring, int quarter) {
  const int lane = threadIdx.x % 32, groups = p.shape.groups;
  const Tiles tiles{p.shape};
  Turn turn;
  Place place;
  for (int number = 0; tiles.at(number, place); ++number) {
    const u8* from[4];
    u32 to[4];
    int slot[4];
    const int before = Row16::eights_before(p, place.row16 + quarter * 4);
#pragma unroll
    for (int t = 0; t < 4; ++t) {
      const int at = place.row16 + quarter * 4 + t;
      const Row16 row16(p, at);
      slot[t] = row16.there ? row16.eight ? 2048 : 1024 : 0;
      from[t] = (row16.eight ? p.codes8 : p.codes4) + (static_cast<i64>(row16.index) * groups + place.begin) * slot[t] + lane * 16;
      to[t] = ring + X_BYTES + kilobytes_before(p, place.row16, at) * 1024 + lane * 16;
    }
#pragma unroll 1
    for (int stage = place.begin; stage < place.end; ++stage, turn.next()) {
      barrier_wait(ring + EMPTY_AT + turn.stage * 8, turn.parity ^ 1);
      if (UNSIGNED && stage >= groups) {
        const u32 zeros = ring + turn.stage * STAGE_BYTES + X_BYTES + quarter * 4 * ZERO_BYTES;
        u32 kinds = before << 8;
#pragma unroll
        for (int t = 0; t < 4; ++t) kinds |= ((slot[t] > 0) | (slot[t] > 1024) << 4) << t;
        copy_zeros(p, zeros, place.row16 + quarter * 4, kinds, stage);
      } else {
#pragma unroll
        for (int t = 0; t < 4; ++t) {
#pragma unroll
          for (int at = 0; at < 2048; at += 512)
            if (at < slot[t]) copy_async(to[t] + turn.stage * STAGE_BYTES + at, from[t] + at);
          from[t] += slot[t];
        }
      }
      barrier_arrive_after_copies(ring + FULL_AT + turn.stage * 8);
    }
  }
}

// A warp: the tokens, and all scales.
__device__ __forceinline__ void produce_tokens(const Arguments& p, u32 ring) {
  constexpr int PIECES = META4 / 16, ROUNDS = (TILES16 * PIECES + 31) / 32;
  const int lane = threadIdx.x % 32, groups = p.shape.groups;
  const Tiles tiles{p.shape};
  Turn turn;
  Place place;
  for (int number = 0; tiles.at(number, place); ++number) {
    const int left = min(p.shape.tokens - place.token, BN), x_scale_bytes = TOKEN_SCALES ? 0 : (left + 3) / 4 * 16;
    const i64 step = static_cast<i64>(p.shape.tokens) * 128;
    const i8* x = p.x + place.begin * step + static_cast<i64>(place.token) * 128;
    // A lane has 16 bytes of a 16-row tile's scales.
    const u8* from[ROUNDS];
    int meta[ROUNDS];
#pragma unroll
    for (int round = 0; round < ROUNDS; ++round) {
      const int piece = round * 32 + lane, part = piece % PIECES * 16;
      const Row16 row16(p, place.row16 + min(piece / PIECES, TILES16 - 1));
      meta[round] = row16.eight ? META8 : META4;
      from[round] = (row16.eight ? p.scales8 : p.scales4) + (static_cast<i64>(row16.index) * groups + place.begin) * meta[round] + part;
      if (!row16.there || piece >= TILES16 * PIECES || part >= meta[round]) meta[round] = 0;
    }
#pragma unroll 1
    for (int stage = place.begin; stage < place.end; ++stage, turn.next()) {
      const bool scaled = !UNSIGNED || stage < groups;
      const u32 full = ring + FULL_AT + turn.stage * 8, scales = ring + SCALES_AT + turn.stage * SCALE_STAGE;
      barrier_wait(ring + EMPTY_AT + turn.stage * 8, turn.parity ^ 1);
#pragma unroll
      for (int round = 0; round < ROUNDS; ++round) {
        if (scaled && meta[round] > 0) copy_async(scales + (round * 32 + lane) * 16, from[round]);
        from[round] += meta[round];
      }
      // Tokens may be the kernel's before.
      if (stage == place.begin && number == 0) wait_for_earlier_kernels();
      if (lane == 0) {
        barrier_expect(full, left * 128 + x_scale_bytes);
        copy_bulk(ring + turn.stage * STAGE_BYTES, x, left * 128, full);
        if (!TOKEN_SCALES)
          copy_bulk(scales + W_SCALE_BYTES, p.x_scales + place.token + static_cast<i64>(stage >> p.x_group_shift) * p.x_stride,
                    x_scale_bytes, full);
      }
      barrier_arrive_after_copies(full);
      x += step;
    }
  }
}
