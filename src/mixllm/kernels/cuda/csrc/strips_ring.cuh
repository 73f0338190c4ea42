// What a block of strips.cu has in shared memory, and how a stage of its ring is filled.
#pragma once
#include "strips_way.cuh"

// Beside those that multiply: the warps that write, that which fetches weights, that which fetches X.
constexpr int WRITERS = 2, WRITER = WARPS, FETCHER = WARPS + WRITERS, THREADS = 32 * (FETCHER + 2), NJ = BN / 8;
constexpr int META = META4 > META8 ? META4 : META8;
constexpr int SCALES_AT = SLOTS * 1024, STAGE_BYTES = SLOTS * (1024 + META);
constexpr int MOST_STAGES = 16, SUM_BYTES = WARPS * 16 * BN * 4, KEPT_BYTES = CHUNKED ? BATCH * 16 * BN * 4 : 0;
constexpr int FULL_AT = 0, EMPTY_AT = MOST_STAGES * 8, X_FULL_AT = 2 * MOST_STAGES * 8, X_EMPTY_AT = X_FULL_AT + 16;
constexpr int SUMS_FULL_AT = X_EMPTY_AT + 16, SUMS_EMPTY_AT = SUMS_FULL_AT + 16, TABLE_AT = SUMS_EMPTY_AT + 16;
constexpr int NOTES = 8, NOTES_AT = TABLE_AT + BN * 8, TOPS_AT = NOTES_AT + WRITERS * NOTES * 128;
constexpr int SUMS_AT = TOPS_AT + WARPS * 8, KEPT_AT = SUMS_AT + 2 * SUM_BYTES;
constexpr int X_AT = (KEPT_AT + KEPT_BYTES + 127) / 128 * 128;
static_assert(SLOTS % WARPS == 0 && SLOTS % 2 == 0, "warps have equal shares, and a stage begins with a group");
static_assert(!CHUNKED || PEERS == 1, "blocks of a cluster go through chunks at their own pace");

// Chunks that have room at one time: warps that hold theirs in registers leave it at once.
constexpr int ROOMS = CHUNKED && HELD == 0 ? 2 : 1;

// X, or ROOMS chunks, its rows half a line more than they hold so that two tokens' lie in all banks | its scales, if tokens have
// one a group | the ring.
struct Space {
  u32 base;
  int x_pitch, x_bytes, x_scale_bytes, ring_at, stages;

  __device__ __forceinline__ Space(const Arguments& p, u32 base) : base(base) {
    x_pitch = (CHUNKED ? CHUNK : p.shape.groups) * 128 + 64;
    x_bytes = p.shape.tokens * x_pitch * ROOMS;
    x_scale_bytes = TOKEN_SCALES ? 0 : ((p.shape.groups - 1 >> p.x_group_shift) + 1) * p.x_stride * 4;
    ring_at = (X_AT + x_bytes + x_scale_bytes + 127) / 128 * 128;
    stages = min(MOST_STAGES, (SHARED - ring_at) / STAGE_BYTES);
  }
  __device__ __forceinline__ u32 stage(int number) const { return base + ring_at + number * STAGE_BYTES; }
  __device__ __forceinline__ u32 x(int turn) const { return base + X_AT + turn % ROOMS * (x_bytes / ROOMS); }
};

// A place in the ring and which time round it is.
struct Turn {
  int stage = 0;
  u32 parity = 0;
  __device__ __forceinline__ void next(int stages) {
    if (++stage == stages) stage = 0, parity ^= 1;
  }
};

// Where a stage's codes and scales lie in memory.
struct Source {
  const u8 *codes, *scales;
  int code_bytes, scale_bytes;

  __device__ __forceinline__ Source(const Arguments& p, const Walk& at) {
    const bool eight = at.strip.eight;
    const int count = min(SLOTS, at.end - at.slot), meta = eight ? META8 : META4;
    const int first_group = eight ? at.slot / 2 : at.slot, groups = eight ? (count + 1) / 2 : count;
    const i64 slot = static_cast<i64>(at.strip.row16) * at.strip.slots + at.slot;
    const i64 group = static_cast<i64>(at.strip.row16) * p.shape.groups + first_group;
    codes = (eight ? p.codes8 : p.codes4) + slot * 1024, code_bytes = count * 1024;
    scales = (eight ? p.scales8 : p.scales4) + group * meta, scale_bytes = groups * meta;
  }
};

__device__ __forceinline__ void fill(const Arguments& p, const Walk& at, const Space& space, int stage) {
  const Source from(p, at);
  const u32 full = space.base + FULL_AT + stage * 8, to = space.stage(stage);
  barrier_expect(full, from.code_bytes + from.scale_bytes);
  copy_once(to, from.codes, from.code_bytes, full);
  if (from.scale_bytes > 0) copy_once(to + SCALES_AT, from.scales, from.scale_bytes, full);
}

// The same from memory no further than L2.
__device__ __forceinline__ void fill_l2(const Arguments& p, const Walk& at) {
  const Source from(p, at);
  prefetch_once(from.codes, from.code_bytes);
  if (from.scale_bytes > 0) prefetch_once(from.scales, from.scale_bytes);
}
