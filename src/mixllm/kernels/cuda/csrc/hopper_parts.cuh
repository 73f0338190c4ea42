// A tile's float sums (hopper_scales.cuh): of 256 tokens a part at a time, since registers hold no more int32 beside the
// float32 of all; of fewer, all at a time.
//
// Weights are unpacked once for all tokens. The tensor cores take products in turn from the warps that have some
// queued; so without turns both warpgroups finish together, scale together and stay so. Warpgroups take turns at queueing. While
// one's part is multiplied the other must be ready with its next one: so parts are as large as registers allow.
#pragma once
#include "hopper_scales.cuh"

// Named barriers: whose turn it is.
constexpr int TURN = 4;
__device__ __forceinline__ void await_turn(int group) { named_barrier<CONSUMERS * 128>(TURN + group); }
__device__ __forceinline__ void pass_turn(int group) { arrive_at_named_barrier<CONSUMERS * 128>(TURN + (group ^ 1)); }
// Of a warpgroup that has none: the producers.
__device__ __forceinline__ void give_first_turn() { pass_turn(1); }

// What a warpgroup has of the stage that it multiplies.
struct Now {
  u32 a[4][4];
  float s[2];
  int stage;
};

// Tokens FIRST .. FIRST + N of a stage; more: there is another stage, which the last part makes ready.
template <int FIRST, int N>
__device__ __forceinline__ void sum_part(float (&f)[BN / 2], Now& now, Stage16& next, Turn& turn, bool more) {
  constexpr bool LAST = FIRST + N == BN;
  const int own = next.warp.tile / 4;
  u32 d[N / 2];
  float s_a[N / 4];
  // All loads go before the products: behind queued ones they wait.
  if (LAST && more) {
    await_stage(next.ring, turn);
    next.load(turn.stage);
  }
  if constexpr (!TOKEN_SCALES) token_scales<N>(s_a, next.tokens(now.stage) + FIRST * 4);
  const u32 x = next.ring + now.stage * STAGE_BYTES + FIRST * 128;
  await_turn(own);
  start<N, 0, 2>(d, now.a, x, 0);
  start<N, 2, 4>(d, now.a, x, 1);
  pass_turn(own);
  wgmma_wait<0>();
  settle(d);
  if constexpr (LAST) {
#pragma unroll
    for (int i = 0; i < 4; ++i) settle(now.a[i]);
    leave_stage(next.ring, now.stage, next.warp.lane);
    next.unpack(now.a);
  }
  add_group<N>(f + FIRST / 2, d, now.s, s_a);
}

// group: the first; stages: how many, one or more.
__device__ __forceinline__ void sum_groups(const Warp16& warp, float (&f)[BN / 2], u32 ring, Turn& turn, int group, int stages) {
  Now now;
  Stage16 next(warp, ring, group);
  await_stage(ring, turn);
  next.load(turn.stage);
  next.unpack(now.a);
  next.convert(now.s);
#pragma unroll 1
  for (int left = stages; left > 0; --left) {
    now.stage = turn.stage;
    turn.next();
    const bool more = left > 1;
    if constexpr (BN == 256 && UNSIGNED) {
      sum_part<0, 96>(f, now, next, turn, more), sum_part<96, 80>(f, now, next, turn, more);
      sum_part<176, 80>(f, now, next, turn, more);
    } else if constexpr (BN == 256) {
      // Scales of the tokens want registers too. (Larger parts with what is spilled kept out of the loop are 10 % slower.)
      sum_part<0, 64>(f, now, next, turn, more), sum_part<64, 64>(f, now, next, turn, more);
      sum_part<128, 64>(f, now, next, turn, more), sum_part<192, 64>(f, now, next, turn, more);
    } else {
      sum_part<0, BN>(f, now, next, turn, more);
    }
    next.convert(now.s);
  }
}
