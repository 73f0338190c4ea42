// A tile's sums where each group of 128 inputs has float scales: int32 for the tensor cores, float32 beside it.
//
// int32 lives for a group, where |sum| <= 127 * 127 * 128 < 2^21 is exact in a float; fma(sum s_w, s_a, before), or with
// one activation scale a token fma(sum, s_w, before). The two warpgroups take turns: the tensor cores take products
// of warps that have some queued in turn, so without turns both finish together, both scale together, and
// either the tensor cores or the multipliers stand still (ncu; docs/hopper.md).
#pragma once
#include "hopper_weights.cuh"
#include "wgmma_sums.cuh"

// Tokens that are multiplied at a time: as many as registers hold integers for, beside the sums of all.
constexpr int PART = BN == 256 ? 64 : BN, PARTS = BN / PART;

// Named barriers: whose turn it is. A warpgroup passes it on when half of its products are done.
constexpr int TURN = 4;
__device__ __forceinline__ void await_turn(int group) { named_barrier<CONSUMERS * 128>(TURN + group); }
__device__ __forceinline__ void pass_turn(int group) { arrive_at_named_barrier<CONSUMERS * 128>(TURN + (group ^ 1)); }
// Of a warpgroup that has none: the producers.
__device__ __forceinline__ void give_first_turn() { pass_turn(1); }

// Where a lane finds what it needs of a stage; kept, since computing it again costs as much as a load.
struct Places {
  u32 codes, affine, row_scales, token_scales;

  __device__ __forceinline__ explicit Places(const Warp16& warp) {
    const u32 meta = SCALES_AT + warp.tile * META4;
    codes = moved(X_BYTES + warp.codes + warp.lane * 16);
    affine = moved(meta + SCALE_BYTES + warp.lane / 4 * 2);
    row_scales = moved(meta + warp.lane / 4 * (WEIGHT_SCALES * 4));
    token_scales = moved(SCALES_AT + W_SCALE_BYTES + warp.lane % 4 * 8);
  }
};

// Scales of rows g and g + 8 as they are stored; 1 where they are integers in the unpacking.
struct Stored {
  u32 bits[2];

  __device__ __forceinline__ void load(u32 from) {
    if constexpr (WEIGHT_SCALES == 1) bits[0] = load_shared_u32(from);
    if constexpr (WEIGHT_SCALES == 2) load_shared_pair(from, bits[0], bits[1]);
  }
  __device__ __forceinline__ void convert(float (&s)[2]) const {
    if constexpr (WEIGHT_SCALES == 0) s[0] = s[1] = 1.0f;
    if constexpr (WEIGHT_SCALES == 1)
      s[0] = from_half_bits(static_cast<u16>(bits[0])), s[1] = from_half_bits(static_cast<u16>(bits[0] >> 16));
    if constexpr (WEIGHT_SCALES == 2) s[0] = __uint_as_float(bits[0]), s[1] = __uint_as_float(bits[1]);
  }
};

__device__ __forceinline__ void sum_tile(const Warp16& warp, float (&f)[BN / 2], u32 ring, Turn& turn, int stages) {
  u32 a[4][4], d[PART / 2];
  float s[2], s_a[PART / 4];
  const Places at(warp);
  const int group = warp.tile / 4;
  Codes codes;
  Stored stored;
  const auto load = [&](int stage) {
    const u32 from = ring + stage * STAGE_BYTES, scales = ring + stage * SCALE_STAGE;
    codes.load(from + at.codes, scales + at.affine, warp.eight);
    stored.load(scales + at.row_scales);
  };
#pragma unroll
  for (int i = 0; i < BN / 2; ++i) f[i] = 0.0f;
  await_stage(ring, turn);
  load(turn.stage);
  codes.unpack<true, 0, 2>(a, warp.eight);
  stored.convert(s);
#pragma unroll 1
  for (int left = stages; left > 0; --left) {
    const int now = turn.stage;
    const u32 x = ring + now * STAGE_BYTES, x_scales = ring + now * SCALE_STAGE + at.token_scales;
    turn.next();
#pragma unroll
    for (int part = 0; part < PARTS; ++part) {
      // All loads go before the products: behind queued ones they wait.
      if (part == PARTS - 1 && left > 1) {
        await_stage(ring, turn);
        load(turn.stage);
      }
      if constexpr (!TOKEN_SCALES) token_scales<PART>(s_a, x_scales + part * PART * 4);
      await_turn(group);
      start<true, PART, 0, 2>(d, a, x + part * PART * 128, 0);
      start<true, PART, 2, 4>(d, a, x + part * PART * 128, 1);
#ifndef TURNS
#define TURNS 1
#endif
#if TURNS == 3
      pass_turn(group);
#endif
#if TURNS == 1
      wgmma_wait<1>();
      pass_turn(group);
#endif
      wgmma_wait<0>();
#if TURNS == 2
      pass_turn(group);
#endif
      settle(d);
      if (part == PARTS - 1) {
#pragma unroll
        for (int i = 0; i < 4; ++i) settle(a[i]);
        leave_stage(ring, now, warp.lane);
        codes.unpack<true, 0, 2>(a, warp.eight);
      }
      add_scaled<PART>(f + part * PART / 2, d, s, s_a);
    }
    stored.convert(s);
  }
}
