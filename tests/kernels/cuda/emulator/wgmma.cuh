// csrc/wgmma.cuh for a CPU: a product is done when it is asked for; each warp for its own 16 rows.
#pragma once
#include "ptx.cuh"

inline u64 swizzled_tile(u32 address) {
  if (address % 1024) std::abort();
  return address >> 4;
}
inline void wgmma_fence() {}
inline void wgmma_commit() {}
template <int YOUNGER>
inline void wgmma_wait() {}
template <int N>
inline void settle(u32 (&)[N]) {}

template <bool UNSIGNED_A, int N>
inline void wgmma(u32 (&d)[N / 2], const u32 (&a)[4], u64 b, u32 accumulate) {
  Warp& warp = *warps[threadIdx.x / 32];
  const int lane = threadIdx.x % 32, g = lane / 4, c = lane % 4;
  std::copy(a, a + 4, warp.a[lane]);
  __syncwarp();
  int left[2][32];
  for (int h = 0; h < 2; ++h)
    for (int k = 0; k < 32; ++k) {
      const u8 byte = warp.a[g * 4 + k % 16 / 4][h + k / 16 * 2] >> k % 4 * 8;
      left[h][k] = UNSIGNED_A ? int{byte} : int{static_cast<i8>(byte)};
    }
  for (int i = 0; i < N / 2; ++i) {
    const int token = i / 4 * 8 + c * 2 + i % 2, h = i % 4 / 2;
    u32 sum = accumulate ? d[i] : 0;
    for (int k = 0; k < 32; ++k) {
      // The swizzle is of the address: its bits 4..6 by its bits 7..9.
      const u32 plain = static_cast<u32>(b << 4) + token / 8 * 1024 + token % 8 * 128 + k;
      sum += left[h][k] * static_cast<i8>(shared_memory[plain ^ (plain >> 7 & 7) << 4]);
    }
    d[i] = sum;
  }
  __syncwarp();
}
