// A tile's float sums (hopper_scales.cuh): of 256 tokens 64 at a time, since registers hold no more int32 beside the
// float32 of all; of fewer, all at a time.
//
// Weights are unpacked once for all tokens. The tensor cores take products in turn from the warps that have some
// queued; so without turns both warpgroups finish together, scale together and stay so. Warpgroups take turns at queueing.
#pragma once
#include "hopper_scales.cuh"

constexpr int PART = BN == 256 ? 64 : BN, PARTS = BN / PART;

// Named barriers: whose turn it is.
constexpr int TURN = 4;
__device__ __forceinline__ void await_turn(int group) { named_barrier<CONSUMERS * 128>(TURN + group); }
__device__ __forceinline__ void pass_turn(int group) { arrive_at_named_barrier<CONSUMERS * 128>(TURN + (group ^ 1)); }
// Of a warpgroup that has none: the producers.
__device__ __forceinline__ void give_first_turn() { pass_turn(1); }

// group: the first; stages: how many, one or more.
__device__ __forceinline__ void sum_groups(const Warp16& warp, float (&f)[BN / 2], u32 ring, Turn& turn, int group, int stages) {
  u32 a[4][4], d[PART / 2];
  float s[2], s_a[PART / 4];
  const int own = warp.tile / 4;
  Stage16 next(warp, ring, group);
  await_stage(ring, turn);
  next.load(turn.stage);
  next.unpack(a);
  next.convert(s);
#pragma unroll 1
  for (int left = stages; left > 0; --left) {
    const int now = turn.stage;
    const u32 x = ring + now * STAGE_BYTES, x_scales = next.tokens(now);
    turn.next();
#pragma unroll
    for (int part = 0; part < PARTS; ++part) {
      // All loads go before the products: behind queued ones they wait.
      if (part == PARTS - 1 && left > 1) {
        await_stage(ring, turn);
        next.load(turn.stage);
      }
      if constexpr (!TOKEN_SCALES) token_scales<PART>(s_a, x_scales + part * PART * 4);
      await_turn(own);
      start<PART, 0, 2>(d, a, x + part * PART * 128, 0);
      start<PART, 2, 4>(d, a, x + part * PART * 128, 1);
      pass_turn(own);
      wgmma_wait<0>();
      settle(d);
      if (part == PARTS - 1) {
#pragma unroll
        for (int i = 0; i < 4; ++i) settle(a[i]);
        leave_stage(ring, now, warp.lane);
        next.unpack(a);
      }
      add_group<PART>(f + part * PART / 2, d, s, s_a);
    }
    next.convert(s);
  }
}
