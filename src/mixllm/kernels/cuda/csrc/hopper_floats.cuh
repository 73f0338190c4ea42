// Float sums of a tile: its groups, then what the weights' zero points make, sum over g of (z s)[row, g] (s_a X)[token, g].
//
// That is a product with an inner dimension of K / 128, in bfloat16: each side in two parts, which together have 16 bits, and
// all four products of parts. So a stage has 16 groups; the quantizer writes its lines of tokens behind the others, a
// group's parts twice over in words 4 apart, and of the rows it has 16 groups' scales as they are stored.
#pragma once
#if BN == 128 && TOKEN_SCALES
#include "hopper_halves.cuh"
#else
#include "hopper_parts.cuh"
#endif

// The four A operands of a stage that begins with `group`; scales: where it has those of the warp's rows.
__device__ __forceinline__ void zero_points(u32 (&a)[4][4], const Warp16& warp, u32 scales, int group, int groups) {
  // The tokens' lines are 2^-14 of s_a X, lest they overflow.
  constexpr float LEFT = SUBNORMAL ? 0x1p-24f : 1.0f;
  const int g = warp.lane / 4, c = warp.lane % 4;
#pragma unroll
  for (int step = 0; step < 4; ++step) {
    const int its = step * 4 + c;
    const u32 meta = scales + its * (warp.eight ? META8 : META4);
    Stored stored;
    stored.load(meta + g * (WEIGHT_SCALES * 4));
    float s[2];
    stored.convert(s);
    u32 zeros = 0x8080u;
    if (!warp.eight) zeros = load_shared_u16(meta + SCALE_BYTES + g * 2);
    const bool turned = (group + its) % 2;
    if (turned) zeros = (warp.eight ? 0xFFFFu : 0x0F0Fu) - zeros;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float v = s[h] * LEFT * static_cast<float>(static_cast<int>(zeros >> h * 8 & 255u));
      if (!turned) v = -v;
      if (group + its >= groups) v = 0.0f;  // what lies there is anything
      const u16 high = to_bfloat_bits(v), low = to_bfloat_bits(v - from_bfloat_bits(high));
      a[step][h] = a[step][2 + h] = high | static_cast<u32>(low) << 16;
    }
  }
}

// Stages begin .. end of a tile whose first `groups` stages are groups. (A stage's operands made while the products of the one
// before run would take registers that larger parts need.)
__device__ __forceinline__ void add_zero_points(const Warp16& warp, float (&f)[BN / 2], u32 ring, Turn& turn, int begin, int end,
                                                int groups) {
#pragma unroll 1
  for (int stage = begin; stage < end; ++stage, turn.next()) {
    u32 a[4][4];
    const u32 x = ring + turn.stage * STAGE_BYTES;
    await_stage(ring, turn);
    zero_points(a, warp, x + X_BYTES + warp.tile * ZERO_BYTES, (stage - groups) * ZERO_GROUPS, groups);
    start_bfloats(f, a, x);
    wgmma_wait<0>();
    settle(f);
    leave_stage(ring, turn.stage, warp.lane);
  }
}

__device__ __forceinline__ void sum_tile(const Warp16& warp, float (&f)[BN / 2], u32 ring, Turn& turn, const Span& span) {
#pragma unroll
  for (int i = 0; i < BN / 2; ++i) f[i] = 0.0f;
  if (span.begin < span.groups)
    sum_groups(warp, f, ring, turn, span.begin, min(span.end, span.groups) - span.begin);
  if constexpr (UNSIGNED) {
    settle(f);  // or some are moved to the stack in the loop before
    add_zero_points(warp, f, ring, turn, max(span.begin, span.groups), span.end, span.groups);
#pragma unroll
    for (int i = 0; i < BN / 2; ++i) f[i] *= 1.0f / UNIT;
  }
}
