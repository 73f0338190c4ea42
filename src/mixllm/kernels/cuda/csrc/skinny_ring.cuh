// The ring that a warp fills for the warpgroups of skinny.cu: what a stage holds, and who asks for it.
//
// A stage is WK slots of a tile's rows (schedule.cuh), in pieces as large as can be: the copy engine takes some sixty
// cycles for a piece, however small. So scales, which are 16 bytes here and there, come by each lane's own copies.
#pragma once
#include "epilogue.cuh"
#include "sm90.cuh"

constexpr int CONSUMERS = WM * KG, THREADS = 32 * (CONSUMERS + 1);  // and the warp that fetches
constexpr int META = META4 > META8 ? META4 : META8;
// A stage: lines of WK groups' tokens | WK slots of each 16-row tile; its scales lie apart.
constexpr int X_BYTES = WK * BN * 128, W_PITCH = WK * 1024, STAGE_BYTES = X_BYTES + WM * W_PITCH;
constexpr int SCALE_PITCH = WK * META, X_SCALES_AT = WM * SCALE_PITCH, X_SCALE_PITCH = TOKEN_SCALES ? 0 : BN * 4;
constexpr int SCALE_STAGE = X_SCALES_AT + WK * X_SCALE_PITCH;
constexpr int SCALES_AT = STAGES * STAGE_BYTES, TABLE_AT = SCALES_AT + STAGES * SCALE_STAGE;
constexpr int FULL_AT = TABLE_AT + BN * 8, EMPTY_AT = FULL_AT + STAGES * 8;
constexpr int SUMS_AT = (EMPTY_AT + STAGES * 8 + 15) / 16 * 16, SUM_BYTES = (KG - 1) * BM * BN * 4;
constexpr int SHARE_AT = SUMS_AT + 2 * SUM_BYTES;
static_assert(WM <= 16 && WK <= 8, "a lane asks for one piece");

using Plan = Schedule<BM, BN, true>;

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
    barrier_init(ring + FULL_AT + stage * 8, 1 + 32);
    barrier_init(ring + EMPTY_AT + stage * 8, CONSUMERS);
  }
  barriers_made();
}

__device__ __forceinline__ void await_stage(u32 ring, const Turn& turn) {
  barrier_wait(ring + FULL_AT + turn.stage * 8, turn.parity);
}

// A warp has read all that it wants of a stage, which may be filled again.
__device__ __forceinline__ void leave_stage(u32 ring, int stage, int lane) {
  __syncwarp();
  if (lane == 0) barrier_arrive(ring + EMPTY_AT + stage * 8);
}

// The fetching warp's way through the stages of all pieces.
struct Walk {
  Segment piece;
  int index = 0, slot;
  bool more;

  __device__ __forceinline__ explicit Walk(const Plan& plan) { enter(plan); }
  __device__ __forceinline__ void enter(const Plan& plan) {
    more = plan.piece(index, piece);
    slot = piece.begin;
  }
  __device__ __forceinline__ void step(const Plan& plan) {
    slot += WK;
    if (slot < piece.end) return;
    ++index;
    enter(plan);
  }
  __device__ __forceinline__ int count() const { return min(WK, piece.end - slot); }
  // Of 128 inputs; two 8-bit slots share one.
  __device__ __forceinline__ int first_group() const { return piece.eight ? slot / 2 : slot; }
  __device__ __forceinline__ int groups() const { return piece.eight ? (slot + count() + 1) / 2 - slot / 2 : count(); }
};

// Says how much a stage will hold and asks for all that was there before earlier kernels.
__device__ __forceinline__ void fill_weights(const Arguments& p, const Walk& at, u32 ring, int stage, int lane) {
  const bool eight = at.piece.eight;
  const int count = at.count(), groups = at.groups(), meta = eight ? META8 : META4;
  const int rows = max(0, min(WM, (eight ? p.shape.rows8 : p.shape.rows4) - at.piece.row16));
  const u32 full = ring + FULL_AT + stage * 8, scales = ring + SCALES_AT + stage * SCALE_STAGE;
  if (lane == 0)
    barrier_expect(full, rows * count * 1024 + groups * (p.shape.tokens * 128 + (TOKEN_SCALES ? 0 : p.x_stride * 4)));
  __syncwarp();
  if (lane < rows) {
    const u8* codes = eight ? p.codes8 : p.codes4;
    copy_bulk(ring + stage * STAGE_BYTES + X_BYTES + lane * W_PITCH,
              codes + (static_cast<i64>(at.piece.row16 + lane) * at.piece.slots + at.slot) * 1024, count * 1024, full);
  }
  constexpr int PIECES = SCALE_PITCH / 16;
  const u8* from = (eight ? p.scales8 : p.scales4) +
                   (static_cast<i64>(at.piece.row16) * p.shape.groups + at.first_group()) * meta;
#pragma unroll
  for (int n = 0; n < WM * PIECES; n += 32) {
    const int tile = (n + lane) / PIECES, piece = (n + lane) % PIECES;
    if (tile < rows && piece * 16 < groups * meta)
      copy_async(scales + tile * SCALE_PITCH + piece * 16, from + static_cast<i64>(tile) * p.shape.groups * meta + piece * 16);
  }
  barrier_arrive_after_copies(full);
}

// Bytes from one group's lines to the next one's, for the swizzle's sake whole eights.
__device__ __forceinline__ int x_pitch(const Arguments& p) { return (p.shape.tokens + 7) / 8 * 1024; }

// ... and for what they wrote: a group's lines of all tokens are one piece, and so are several groups' whole eights.
__device__ __forceinline__ void fill_tokens(const Arguments& p, const Walk& at, u32 ring, int stage, int lane) {
  const u32 full = ring + FULL_AT + stage * 8, x = ring + stage * STAGE_BYTES;
  const int q = lane % 8, group = at.first_group() + q, groups = at.groups(), line = p.shape.tokens * 128;
  if (p.shape.tokens % 8 == 0) {
    if (lane == 0) copy_bulk(x, p.x + static_cast<i64>(group) * line, groups * line, full);
  } else if (lane < groups) {
    copy_bulk(x + q * x_pitch(p), p.x + static_cast<i64>(group) * line, line, full);
  }
  if (!TOKEN_SCALES && lane / 8 == 1 && q < groups)
    copy_bulk(ring + SCALES_AT + stage * SCALE_STAGE + X_SCALES_AT + q * X_SCALE_PITCH,
              p.x_scales + static_cast<i64>(group >> p.x_group_shift) * p.x_stride, p.x_stride * 4, full);
}

// All that the fetching warp does.
__device__ __forceinline__ void fetch_all(const Arguments& p, const Plan& plan, u32 ring, int lane) {
  Walk at(plan);
  Walk again = at;
  for (int stage = 0; stage < STAGES && at.more; ++stage) {
    fill_weights(p, at, ring, stage, lane);
    at.step(plan);
  }
  wait_for_earlier_kernels();
  for (int stage = 0; stage < STAGES && again.more; ++stage) {
    fill_tokens(p, again, ring, stage, lane);
    again.step(plan);
  }
  Turn turn;
  for (; at.more; turn.next()) {
    barrier_wait(ring + EMPTY_AT + turn.stage * 8, turn.parity);
    fill_weights(p, at, ring, turn.stage, lane);
    fill_tokens(p, at, ring, turn.stage, lane);
    at.step(plan);
  }
}
