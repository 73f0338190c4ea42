// A tile's float sums of 128 tokens with one activation scale each (hopper_scales.cuh), in two halves of which one is always in the
// tensor cores' queue: a half's products are queued as soon as its sums of the stage before are free, and run while
// the other half is scaled. (With a scale a group and token the registers do not suffice.)
#pragma once
#include "hopper_scales.cuh"

constexpr int HALF = BN / 2;

// No turns: each warpgroup always has products queued.
__device__ __forceinline__ void give_first_turn() {}

// group: the first; stages: how many, one or more.
__device__ __forceinline__ void sum_groups(const Warp16& warp, float (&f)[BN / 2], u32 ring, Turn& turn, int group, int stages) {
  u32 even[4][4], odd[4][4], first[HALF / 2], second[HALF / 2];
  float s[2];
  Stage16 next(warp, ring, group);
  await_stage(ring, turn);
  next.load(turn.stage);
  next.unpack(even);
  next.convert(s);
  start<HALF, 0, 4>(first, even, ring + turn.stage * STAGE_BYTES, 0);
  // a: this stage's weights; after: the next one's, if there is one.
  const auto step = [&](u32(&a)[4][4], u32(&after)[4][4], bool more) {
    const int now = turn.stage;
    turn.next();
    if (more) {
      await_stage(ring, turn);
      next.load(turn.stage);
    }
    start<HALF, 0, 4>(second, a, ring + now * STAGE_BYTES + HALF * 128, 0);
    wgmma_wait<1>();
    settle(first);
    if (more) {
      next.unpack(after);
#pragma unroll
      for (int i = 0; i < 4; ++i) settle(after[i]);
    }
    add_group<HALF>(f, first, s, nullptr);
    if (more) {
      start<HALF, 0, 4>(first, after, ring + turn.stage * STAGE_BYTES, 0);
      wgmma_wait<1>();
    } else {
      wgmma_wait<0>();
    }
    settle(second);
    leave_stage(ring, now, warp.lane);
    add_group<HALF>(f + HALF / 2, second, s, nullptr);
    next.convert(s);
  };
  int left = stages - 1;
#pragma unroll 1
  for (; left > 1; left -= 2) {
    step(even, odd, true);
    step(odd, even, true);
  }
  if (left > 0) {
    step(even, odd, true);
    step(odd, even, false);
  } else {
    step(even, odd, false);
  }
}
