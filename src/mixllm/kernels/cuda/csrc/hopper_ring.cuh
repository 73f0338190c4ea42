// The ring that the copy engine fills and the warpgroups read: what a stage holds, and the warp that asks for it.
#pragma once
#include "sm90.cuh"
#include "hopper_schedule.cuh"

constexpr int CONSUMERS = 2, THREADS = 128 * (CONSUMERS + 1);
// A stage: 128 inputs of BN tokens and of 128 rows, and their scales of one group.
constexpr int X_BYTES = BN * 128, W_BYTES = BM * 128, STAGE_BYTES = X_BYTES + W_BYTES;
constexpr int W_SCALE_BYTES = BM / 16 * META4, X_SCALE_BYTES = TOKEN_SCALES ? 0 : BN * 4;
constexpr int SCALE_STAGE = W_SCALE_BYTES + X_SCALE_BYTES;
constexpr int CHUNK = 64, LINE = 64 * 2 + 16;  // the epilogue's tokens at a time; bytes a token, over all banks
constexpr int SCALES_AT = STAGES * STAGE_BYTES, STAGING_BYTES = CHUNK * LINE, TABLE_BYTES = BN * 8;
constexpr int STAGING_AT = SCALES_AT + STAGES * SCALE_STAGE, TABLE_AT = STAGING_AT + CONSUMERS * STAGING_BYTES;
constexpr int FULL_AT = TABLE_AT + CONSUMERS * TABLE_BYTES, EMPTY_AT = FULL_AT + STAGES * 8;

// A place in the ring and which time round it is.
struct Turn {
  int stage = 0;
  u32 parity = 0;
  __device__ __forceinline__ void next() {
    if (++stage == STAGES) stage = 0, parity ^= 1;
  }
};

__device__ __forceinline__ void ring_init(u32 ring) {
  for (int stage = 0; stage < STAGES; ++stage) {
    barrier_init(ring + FULL_AT + stage * 8, 1);
    barrier_init(ring + EMPTY_AT + stage * 8, CONSUMERS * 4 * CLUSTER);
  }
  barriers_made();
}

__device__ __forceinline__ void await_stage(u32 ring, const Turn& turn) {
  barrier_wait(ring + FULL_AT + turn.stage * 8, turn.parity);
}

// A warp has read all that it wants of a stage: its block's producer and the others' may fill it again.
__device__ __forceinline__ void leave_stage(u32 ring, int stage, int lane) {
  __syncwarp();
  if (lane < CLUSTER) barrier_arrive(ring + EMPTY_AT + stage * 8, lane);
}

// One warp: lanes 0..7 fetch a 16-row tile of weights each, lane 8 this block's part of the tokens, lane 9 their scales.
__device__ __forceinline__ void produce(const Arguments& p, u32 ring, u32 rank) {
  constexpr int PART = BN / CLUSTER;
  const int lane = threadIdx.x % 32, groups = p.shape.groups;
  const Tiles tiles{p.shape};
  wait_for_earlier_kernels();
  Turn turn;
  Place place;
  for (int index = 0; tiles.at(index, rank, place); ++index) {
    const int slot = place.eight ? 2048 : 1024, meta = place.eight ? META8 : META4;
    const int left = p.shape.tokens - place.token, first = static_cast<int>(rank) * PART;
    const int x_scale_bytes = TOKEN_SCALES ? 0 : min((left + 3) / 4 * 4, BN) * 4;
    const int all = min(left, BN) * 128 + place.rows * (slot + meta) + x_scale_bytes;
    // This lane's piece of each stage: from where, how far on the next one is, to where, how much.
    const bool weights = lane < BM / 16;
    const i64 row = static_cast<i64>(place.row16 + lane) * groups;
    const u8* from = weights ? (place.eight ? p.codes8 : p.codes4) + row * slot
                             : reinterpret_cast<const u8*>(p.x) + static_cast<i64>(place.token + first) * 128;
    const u8* scales = (place.eight ? p.scales8 : p.scales4) + row * meta;
    const i64 step = weights ? slot : static_cast<i64>(p.shape.tokens) * 128;
    const int to = weights ? X_BYTES + lane * slot : first * 128;
    const int bytes = weights ? (lane < place.rows ? slot : 0) : lane == BM / 16 ? max(min(left - first, PART), 0) * 128 : 0;
    for (int group = 0; group < groups; ++group, turn.next()) {
      const u32 full = ring + FULL_AT + turn.stage * 8, stage = ring + turn.stage * STAGE_BYTES;
      barrier_wait(ring + EMPTY_AT + turn.stage * 8, turn.parity ^ 1);
      if (lane == 0) barrier_expect(full, all);
      __syncwarp();
      if (bytes > 0) {
        if (CLUSTER > 1 && !weights)
          copy_bulk_to_all(stage + to, from, bytes, full, (1 << CLUSTER) - 1);
        else
          copy_bulk(stage + to, from, bytes, full);
        if (weights && meta > 0) copy_bulk(ring + SCALES_AT + turn.stage * SCALE_STAGE + lane * META4, scales, meta, full);
      } else if (!TOKEN_SCALES && lane == BM / 16 + 1) {
        const i64 line = static_cast<i64>(group >> p.x_group_shift) * p.x_stride;
        copy_bulk(ring + SCALES_AT + turn.stage * SCALE_STAGE + W_SCALE_BYTES, p.x_scales + place.token + line,
                  x_scale_bytes, full);
      }
      from += step, scales += meta;
    }
  }
}
