// A tile's sums where they are one exact int32 over all of K (WEIGHT_SCALES 0, TOKEN_SCALES 1).
//
// While one stage's products run, the next one's weights are unpacked into other registers and its products queued.
// Weights of both widths are unsigned bytes, 128 too much; the epilogue takes 128 * sum of x away. One loop for both:
// with two the accumulators would live in two places, and ptxas would serialize.
#pragma once
#include "hopper_ring.cuh"
#include "wgmma.cuh"

// A stage's weights of a warp's 16 rows as the A operands of four products.
template <bool SIGNED>
__device__ __forceinline__ void fetch(bool eight, u32 (&a)[4][4], u32 ring, int stage, int tile, int lane) {
  const u32 w = ring + stage * STAGE_BYTES + X_BYTES + tile * (eight ? 2048 : 1024) + lane * 16;
  u32 halves[2][2][4];
  if (eight) {
#pragma unroll
    for (int panel = 0; panel < 2; ++panel)
      unpack8(load_shared(w + panel * 1024), load_shared(w + panel * 1024 + 512), halves[panel]);
    if constexpr (!SIGNED) {
#pragma unroll
      for (int i = 0; i < 16; ++i) halves[i / 8][i / 4 % 2][i % 4] ^= SIGNS;
    }
  } else {
    const u32 meta = ring + SCALES_AT + stage * SCALE_STAGE + tile * META4 + SCALE_BYTES;
    const u32 both = load_shared_u16(meta + lane / 4 * 2);
    const Affine low = WEIGHT_SCALES == 0 ? integer_scale(both & 255u) : zero_only(both & 255u);
    const Affine high = WEIGHT_SCALES == 0 ? integer_scale(both >> 8) : zero_only(both >> 8);
#pragma unroll
    for (int panel = 0; panel < 2; ++panel) unpack4<SIGNED>(load_shared(w + panel * 512), low, high, halves[panel]);
  }
#pragma unroll
  for (int step = 0; step < 4; ++step)
#pragma unroll
    for (int i = 0; i < 4; ++i) a[step][i] = halves[step / 2][step % 2][i];
}

// Queues a stage's four products of N tokens, whose lines begin at x.
template <bool SIGNED, int N>
__device__ __forceinline__ void start(u32 (&d)[N / 2], u32 (&a)[4][4], u32 x, u32 accumulate) {
  const u64 lines = swizzled_tile(x);
#pragma unroll
  for (int step = 0; step < 4; ++step) settle(a[step]);
  settle(d);
  wgmma_fence();
#pragma unroll
  for (int step = 0; step < 4; ++step) wgmma<!SIGNED, N>(d, a[step], lines + step * 2, step == 0 ? accumulate : 1u);
  wgmma_commit();
}

__device__ __forceinline__ void sum_tile(bool eight, u32 (&d)[BN / 2], u32 ring, Turn& turn, int groups, int tile,
                                         int lane) {
  u32 even[4][4], odd[4][4];
  await_stage(ring, turn);
  fetch<false>(eight, even, ring, turn.stage, tile, lane);
  start<false, BN>(d, even, ring + turn.stage * STAGE_BYTES, 0);
  const auto step = [&](u32(&a)[4][4]) {
    const int before = turn.stage;
    turn.next();
    await_stage(ring, turn);
    fetch<false>(eight, a, ring, turn.stage, tile, lane);
    start<false, BN>(d, a, ring + turn.stage * STAGE_BYTES, 1);
    wgmma_wait<1>();
    leave_stage(ring, before, lane);
  };
  int group = 1;
#pragma unroll 1
  for (; group + 1 < groups; group += 2) {
    step(odd);
    step(even);
  }
  if (group < groups) step(odd);
  wgmma_wait<0>();
  settle(d);
  leave_stage(ring, turn.stage, lane);
  turn.next();
}
