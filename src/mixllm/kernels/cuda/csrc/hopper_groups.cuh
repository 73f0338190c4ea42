// A tile's sums where each group of 128 inputs has float scales: int32 for the tensor cores, float32 beside it.
//
// The tokens are two halves whose products are queued one after the other: while one half's run, the other half's
// sums of the group before are scaled. With one activation scale a token int32 is never reset and holds C_g, the sum up
// to group g; by parts, sum over g of s_g (C_g - C_(g-1)) = sum over g of C_g (s_g - s_(g+1)) with s after the last
// group 0: one conversion and one FMA a sum and group. Otherwise int32 lives for a group, and the sum is scaled by
// both. |C_g| < 2^31 for K up to 132,000; a float holds it to 2^-24.
#pragma once
#include "hopper_weights.cuh"
#include "wgmma_sums.cuh"

constexpr int HALF = BN / 2;

// Scales of rows g and g + 8 in a stage; 1 where they are integers in the unpacking.
__device__ __forceinline__ void stage_scales(float (&s)[2], u32 ring, int stage, int tile, int g) {
  const RowScales both = row_scales(ring + SCALES_AT + stage * SCALE_STAGE + tile * META4, g);
  s[0] = both.s[0], s[1] = both.s[1];
}

// f += d * s, for half h of the tokens.
__device__ __forceinline__ void scale_half(float (&f)[BN / 2], const u32 (&d)[HALF / 2], int h, const float (&s)[2],
                                           u32 ring, int stage, int lane) {
  const u32 x_scales = ring + SCALES_AT + stage * SCALE_STAGE + W_SCALE_BYTES + (h * HALF + lane % 4 * 2) * 4;
  add_scaled<HALF>(f + h * (HALF / 2), d, s, x_scales);
}

__device__ __forceinline__ void sum_tile(const Warp16& warp, float (&f)[BN / 2], u32 ring, Turn& turn, int stages) {
  u32 even[4][4], odd[4][4], first[HALF / 2], second[HALF / 2];
  const int lane = warp.lane;
  float s[2];
  Codes codes;
#pragma unroll
  for (int i = 0; i < BN / 2; ++i) f[i] = 0.0f;
#pragma unroll
  for (int i = 0; i < HALF / 2; ++i) first[i] = second[i] = 0;
  await_stage(ring, turn);
  codes.load(warp, ring, turn.stage);
  stage_scales(s, ring, turn.stage, warp.tile, lane / 4);
  codes.unpack<true>(even, 0, warp.eight);
  codes.unpack<true>(even, 1, warp.eight);
  // Nothing is left running at the end of a step: across a loop's edge ptxas does not tell the halves apart.
  const auto step = [&](u32(&a)[4][4], u32(&after)[4][4], bool last) {
    const int now = turn.stage;
    float next[2] = {0.0f, 0.0f};
    turn.next();
    if (!last) {
      await_stage(ring, turn);
      codes.load(warp, ring, turn.stage);
      stage_scales(next, ring, turn.stage, warp.tile, lane / 4);
    }
    start<true, HALF, 0, 4>(first, a, ring + now * STAGE_BYTES, TOKEN_SCALES);
    start<true, HALF, 0, 4>(second, a, ring + now * STAGE_BYTES + HALF * 128, TOKEN_SCALES);
    if (!last) {
      codes.unpack<true>(after, 0, warp.eight);
      codes.unpack<true>(after, 1, warp.eight);
    }
    const float factor[2] = {TOKEN_SCALES ? s[0] - next[0] : s[0], TOKEN_SCALES ? s[1] - next[1] : s[1]};
    wgmma_wait<1>();
    settle(first);
    scale_half(f, first, 0, factor, ring, now, lane);
    wgmma_wait<0>();
    settle(second);
    scale_half(f, second, 1, factor, ring, now, lane);
    leave_stage(ring, now, lane);
    s[0] = next[0], s[1] = next[1];
  };
  int left = stages - 1;
#pragma unroll 1
  for (; left > 1; left -= 2) {
    step(even, odd, false);
    step(odd, even, false);
  }
  if (left > 0) {
    step(even, odd, false);
    step(odd, even, true);
  } else {
    step(even, odd, true);
  }
}
