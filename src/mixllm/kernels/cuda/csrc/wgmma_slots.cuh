// One slot of 16 rows a warp on its way to the tensor cores, for skinny.cu and cluster.cu.
#pragma once
#include "accumulate.cuh"
#include "wgmma.cuh"

// A slot of a warp's 16 rows as the A operands of four products; what is not there is 0. An 8-bit slot has two. Where
// sums are whole, both widths become unsigned bytes, 128 too much.
__device__ __forceinline__ void unpack_slot(u32 (&a)[4][4], bool eight, bool there, u32 w, u32 zeros, int g) {
  u32 halves[2][2][4] = {};
  if (there && eight) {
    unpack8(load_shared(w), load_shared(w + 512), halves[0]);
    if constexpr (WHOLE_SUM) {
#pragma unroll
      for (int i = 0; i < 8; ++i) halves[0][i / 4][i % 4] ^= SIGNS;
    }
  } else if (there) {
    const u32 both = load_shared_u16(zeros + g * 2);
    const Affine low = WEIGHT_SCALES == 0 ? integer_scale(both & 255u) : zero_only(both & 255u);
    const Affine high = WEIGHT_SCALES == 0 ? integer_scale(both >> 8) : zero_only(both >> 8);
#pragma unroll
    for (int panel = 0; panel < 2; ++panel) unpack4<!WHOLE_SUM>(load_shared(w + panel * 512), low, high, halves[panel]);
  }
#pragma unroll
  for (int step = 0; step < 4; ++step)
#pragma unroll
    for (int i = 0; i < 4; ++i) a[step][i] = halves[step / 2][step % 2][i];
}

// Queues a slot's products with the lines at x.
__device__ __forceinline__ void queue(u32 (&d)[BN / 2], u32 (&a)[4][4], u64 lines, u32 accumulate) {
#pragma unroll
  for (int step = 0; step < 4; ++step) settle(a[step]);
  settle(d);
  wgmma_fence();
#pragma unroll
  for (int step = 0; step < 4; ++step) wgmma<WHOLE_SUM, false, BN>(d, a[step], lines + step * 2, step == 0 ? accumulate : 1u);
  wgmma_commit();
}
