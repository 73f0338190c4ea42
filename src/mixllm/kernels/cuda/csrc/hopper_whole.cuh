// A tile's sums where they are one exact int32 over all of K (WEIGHT_SCALES 0, TOKEN_SCALES 1).
//
// A stage's products are queued in two halves, and half of the next stage's weights unpacked after each: the tensor cores
// always have something to do, even while the other warpgroup writes its sums out. Weights of both widths
// are unsigned bytes, 128 too much; the epilogue takes 128 * sum of x away. One loop for both:
// with two the accumulators would live in two places, and ptxas would serialize.
#pragma once
#include "hopper_weights.cuh"

// No turns: there is little to do between products.
__device__ __forceinline__ void give_first_turn() {}

__device__ __forceinline__ void sum_tile(const Warp16& warp, u32 (&d)[BN / 2], u32 ring, Turn& turn, const Span& span) {
  const int stages = span.end - span.begin;
  u32 even[4][4], odd[4][4];
  Codes codes;
  await_stage(ring, turn);
  codes.load(warp, ring, turn.stage);
  codes.unpack<0, 2>(even, warp.eight);
  int before = -1;  // the stage whose products may still run
  // a: this stage's weights; after: the next one's, if there is one.
  const auto step = [&](u32(&a)[4][4], u32(&after)[4][4], bool more, u32 accumulate) {
    const int now = turn.stage;
    const u32 x = ring + now * STAGE_BYTES;
    turn.next();
    if (more) {
      await_stage(ring, turn);
      codes.load(warp, ring, turn.stage);
    }
    start<BN, 0, 2>(d, a, x, accumulate);
    wgmma_wait<1>();
    if (before >= 0) leave_stage(ring, before, warp.lane);
    before = now;
    if (more) {
      codes.unpack<0, 1>(after, warp.eight);
      settle(after[0]), settle(after[1]);
    }
    start<BN, 2, 4>(d, a, x, 1);
    if (more) {
      codes.unpack<1, 2>(after, warp.eight);
      settle(after[2]), settle(after[3]);
    }
  };
  if (stages == 1) {
    step(even, odd, false, 0);
  } else {
    step(even, odd, true, 0);
    int left = stages - 1;
#pragma unroll 1
    for (; left > 2; left -= 2) {
      step(odd, even, true, 1);
      step(even, odd, true, 1);
    }
    if (left == 2) step(odd, even, true, 1), step(even, odd, false, 1);
    else step(odd, even, false, 1);
  }
  wgmma_wait<0>();
  settle(d);
  leave_stage(ring, before, warp.lane);
}
